"""Speed of interpreted runs: what Triton's interpreter does again and again is done once.

Before every launch, and before every call of a small function inside it, the interpreter replaces the
language by its own. Here that happens once for the process. For every integer operation it computes whether
it overflowed and, unless kernels are debugged, throws the answer away; that is left out. For every result it
builds type and shape anew; these are kept by name. Results are the same, and a Triton whose interpreter is
made differently runs as it does by itself.

One thing is mended: f32 becomes bf16 by truncation there, and subnormal bf16 become 0 in both directions.
"""

import dataclasses
import inspect
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import triton.language as tl


def prepare() -> None:
    """Make interpreted runs of this process fast."""
    from triton.runtime import interpreter

    _convert_bf16(interpreter)
    tl.str_to_ty = cache(tl.str_to_ty)  # the type of an argument, by its name
    if hasattr(interpreter, "_patch_lang"):
        interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
        interpreter._patch_lang = lambda function: _Nothing
    builder = getattr(interpreter, "interpreter_builder", None)
    options = getattr(builder, "options", None)
    if getattr(options, "sanitize_overflow", False) and not getattr(options, "debug", True):
        builder.options = dataclasses.replace(options, sanitize_overflow=False)
    if list(inspect.signature(tl.tensor.__init__).parameters) == ["self", "handle", "type"]:
        _keep_shapes()
    if list(inspect.signature(tl.block_type.__init__).parameters) == ["self", "element_ty", "shape"]:
        _keep_types()
    if hasattr(interpreter, "_get_np_dtype"):
        _keep_formats(interpreter)
    semantic = getattr(interpreter, "interpreter_semantic", None)
    if hasattr(semantic, "broadcast_impl_value"):
        _leave_equal_shapes(semantic)
    if hasattr(semantic, "scalar_constant"):
        _keep_constants(semantic)


def _convert_bf16(interpreter: Any) -> None:
    """Conversions between f32 and bf16 round once to nearest even and keep subnormals, as on a device."""
    if not hasattr(interpreter, "_convert_float"):
        raise ImportError("this triton's interpreter does not convert bf16 where those of 3.5 to 3.8 do")
    other = interpreter._convert_float

    def convert(data: Any, source: Any, target: Any, rounding_mode: Any) -> Any:
        if source == tl.bfloat16 and target == tl.float32:
            wide = data.view(np.uint16).astype(np.uint32)
            wide <<= 16
            return wide
        if source == tl.float32 and target == tl.bfloat16:
            return _rounded(data.view(np.uint32))
        return other(data, source, target, rounding_mode)

    interpreter._convert_float = convert


def _rounded(bits: Any) -> Any:
    """bf16 of f32, both as their bits; a NaN stays one."""
    nearest = (bits >> 16) & 1
    nearest += np.uint32(0x7FFF)
    nearest += bits
    nearest >>= 16
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    if nan.any():
        nearest = np.where(nan, (bits >> 16) | 0x40, nearest)
    return nearest.astype(np.uint16)


class _Nothing:
    """A scope in which nothing was replaced."""

    @staticmethod
    def restore() -> None:
        """Nothing to undo."""


def _keep_shapes() -> None:
    """All that a tensor holds but its data follows from its type."""
    make, kept = tl.tensor.__init__, {}

    def init(self: Any, handle: Any, type: Any) -> None:
        known = kept.get(type.name)
        if known is None:
            make(self, handle, type)
            kept[type.name] = {k: v for k, v in self.__dict__.items() if k != "handle"}
        else:
            self.__dict__.update(known, handle=handle)

    tl.tensor.__init__ = init


def _keep_types() -> None:
    """A block's type follows from its element and its shape."""
    make, kept = tl.block_type.__init__, {}

    def init(self: Any, element_ty: Any, shape: Any) -> None:
        key = (element_ty.name, *[getattr(size, "value", size) for size in shape])
        known = kept.get(key)
        if known is None:
            make(self, element_ty, shape)
            kept[key] = dict(self.__dict__)
        else:
            self.__dict__.update(known)

    tl.block_type.__init__ = init


def _keep_formats(interpreter: Any) -> None:
    """numpy's type follows from the element's."""
    find, kept = interpreter._get_np_dtype, {}

    def get(kind: Any) -> Any:
        scalar = kind.scalar
        known = kept.get(scalar.name)
        if known is None:
            known = kept[scalar.name] = find(scalar)
        return known

    interpreter._get_np_dtype = get


def _leave_equal_shapes(semantic: Any) -> None:
    """Blocks of one shape are as they are when they meet; a number takes a block's shape."""
    meet, kept = semantic.broadcast_impl_value, {}

    def spread(number: Any, block: Any) -> Any:
        key = block.name, number.type.name
        kind = kept.get(key)
        if kind is None:
            kind = kept[key] = block.with_element_ty(number.type.scalar)
        return tl.tensor(semantic.builder.create_splat(kind, number.handle), kind)

    def broadcast(lhs: Any, rhs: Any) -> tuple[Any, Any]:
        a, b = lhs.type, rhs.type
        if not b.is_block():
            return (lhs, spread(rhs, a)) if a.is_block() else (lhs, rhs)
        if not a.is_block():
            return spread(lhs, b), rhs
        return (lhs, rhs) if list(a.shape) == list(b.shape) else meet(lhs, rhs)

    semantic.broadcast_impl_value = broadcast


def _keep_constants(semantic: Any) -> None:
    """A number in a kernel is the same at every turn; a builder has its own form of it."""
    make, kept = semantic.scalar_constant, {}

    def constant(value: Any, dtype: Any) -> Any:
        if dtype is None or type(value) not in (bool, int, float):
            return make(value, dtype)
        key = type(semantic.builder), type(value), str(value), dtype.name
        known = kept.get(key)
        if known is None:
            known = kept[key] = make(value, dtype)
        return known

    semantic.scalar_constant = constant
