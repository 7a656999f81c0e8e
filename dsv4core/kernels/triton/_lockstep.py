"""Interpreted launches, many programs at once.

Triton's interpreter runs one program after another, and its time is per operation. Here every value has one
more axis in front: the programs of a group, or 1 where all have the same. What an operation means stays
Triton's: types, promotion and most of its arithmetic are its own code, which numpy applies to longer arrays.

Where programs of a group would go different ways (an `if`, the length of a loop), what they have stored is
put back and each part of the group runs by itself. A kernel that does what is not prepared here (atomics,
descriptors, reductions with a function of its own) runs as Triton's interpreter runs it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import product
from threading import RLock
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from dsv4core.kernels.triton import _rows

GROUP = 256
_alone: set[Any] = set()
_turn = RLock()  # the language is replaced for the whole process: threads take turns


class _Split(BaseException):
    """Programs disagree on a number that decides where they go. Not an Exception, which Triton would wrap."""

    def __init__(self, values: Any) -> None:
        self.values = values


class _Alone(BaseException):
    """The kernel does something that only single programs can do."""


def run(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], meta: dict[str, Any]) -> None:
    """Start an interpreted kernel over a grid; tensors are in host memory."""
    with _turn:
        _run(kernel, grid, arguments, meta)


def _run(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], meta: dict[str, Any]) -> None:
    if kernel not in _alone and _known():
        given = {name: value for name, value in meta.items() if name in kernel.arg_names}
        constants = _constants(kernel)
        named = dict(zip(kernel.arg_names, arguments, strict=False)) | given
        named = {name: value if name in constants else _first(value) for name, value in named.items()}
        ids = np.array(list(product(*(range(n) for n in (*grid, 1, 1)[:3]))), dtype=np.int32)
        builder = _Builder((*grid, 1, 1)[:3])
        try:
            with _language(builder):
                for start in range(0, len(ids), GROUP):
                    builder.written.clear()
                    _group(kernel.rewrite(), named, builder, ids[start : start + GROUP])
            return
        except _Alone:
            builder.undo(0)
            _alone.add(kernel)
    kernel[grid](*arguments, **meta)


def _group(function: Any, named: dict[str, Any], builder: "_Builder", ids: Any) -> None:
    builder.ids = ids
    before = len(builder.written)
    try:
        function(**named)
    except _Split as split:
        builder.undo(before)
        for value in np.unique(split.values):
            _group(function, named, builder, ids[split.values == value])


@cache
def _known() -> bool:
    """Whether this Triton's language goes where it is sent."""
    builder = _Builder((1, 1, 1))
    builder.ids = np.zeros((1, 3), np.int32)
    try:
        with _language(builder):
            return tl.program_id(0).handle.data.shape == (1, 1)
    except Exception:  # another Triton, made differently: its own interpreter runs the kernels
        return False


@cache
def _constants(kernel: Any) -> frozenset[str]:
    return frozenset(interpreter.GridExecutor(kernel.fn, kernel.arg_names, (1,)).constexprs)


def _first(value: Any) -> Any:
    """An argument as a tensor of the language, the same for every program."""
    made = interpreter._implicit_cvt(value)
    if isinstance(made, tl.tensor):
        made.handle.data = made.handle.data.reshape(1, 1)
    return made


@contextmanager
def _language(builder: "_Builder") -> Iterator[None]:
    """The language means groups of programs while a kernel runs."""
    semantic, own = interpreter.interpreter_semantic, interpreter.interpreter_semantic.builder
    names = [(tl.tensor, "__bool__", _truth), (tl.tensor, "__index__", _number)]
    for module in (tl, tl.core):
        names += [(module, "reduce", _reduce), (module, "associative_scan", _scan)]
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in names]
    semantic.builder = builder
    for owner, name, value in names:
        setattr(owner, name, value)
    try:
        yield
    finally:
        semantic.builder = own
        for owner, name, value in kept:
            setattr(owner, name, value)


class _Builder(InterpreterBuilder):
    """Triton's operations on arrays with an axis of programs in front; most work as they are."""

    def __init__(self, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.options = interpreter.interpreter_builder.options
        self.grid = grid
        self.ids: Any = None
        self.written: list[tuple[Any, Any, Any]] = []

    def undo(self, count: int) -> None:
        """Put back what was stored since there were `count` stores."""
        while len(self.written) > count:
            _rows.store(*self.written.pop())

    def create_get_program_id(self, axis: int) -> Any:
        """Every program's own number."""
        ids = self.ids[:, axis : axis + 1]
        return TensorHandle(ids[:1] if (ids == ids[0]).all() else ids, tl.int32)

    def create_get_num_programs(self, axis: int) -> Any:
        """The size of the grid."""
        return TensorHandle(np.array([[self.grid[axis]]], dtype=np.int32), tl.int32)

    def create_addptr(self, ptr: Any, offset: Any) -> Any:
        """Pointers some elements further on."""
        return _rows.moved(ptr, offset, max(1, ptr.get_element_ty().primitive_bitwidth // 8))

    def create_load(self, ptr: Any, *_: Any) -> Any:
        """Load everywhere."""
        return self.create_masked_load(ptr, _everywhere(ptr), None)

    def create_store(self, ptr: Any, value: Any, *_: Any) -> None:
        """Store everywhere."""
        self.create_masked_store(ptr, value, _everywhere(ptr))

    def create_masked_load(self, ptrs: Any, mask: Any, other: Any, *_: Any) -> Any:
        """Load where mask is set."""
        kind = ptrs.get_element_ty()
        dtype = interpreter._get_np_dtype(kind)
        data = np.zeros((1,) * mask.data.ndim, dtype) if other is None else other.data
        return TensorHandle(_rows.load(ptrs, mask.data, data, np.dtype(dtype)), kind)

    def create_masked_store(self, ptrs: Any, value: Any, mask: Any, *_: Any) -> None:
        """Store where mask is set; what was there is kept until the group is through."""
        if len(self.ids) > 1:
            nothing = np.zeros((1,) * mask.data.ndim, value.data.dtype)
            old = _rows.load(ptrs, mask.data, nothing, value.data.dtype)
            self.written.append((ptrs, old, mask.data))
        _rows.store(ptrs, value.data, mask.data)

    def create_make_range(self, ret_ty: Any, start: int, stop: int) -> Any:
        """Numbers from start to stop."""
        return TensorHandle(np.arange(start, stop, dtype=np.int32)[None], tl.int32)

    def create_splat(self, ret_ty: Any, arg: Any) -> Any:
        """A number for every place of a block."""
        data = arg.data.reshape(-1, *[1] * len(ret_ty.shape))
        return TensorHandle(_repeated(data, (len(data), *ret_ty.shape)), arg.dtype.scalar)

    def create_unsplat(self, arg: Any) -> Any:
        """The number of a block that has one."""
        return TensorHandle(arg.data.reshape(-1, 1), arg.dtype.scalar)

    def create_expand_dims(self, arg: Any, axis: int) -> Any:
        """One more axis."""
        return TensorHandle(np.expand_dims(arg.data, axis + 1), arg.dtype.scalar)

    def create_broadcast(self, arg: Any, shape: Any) -> Any:
        """Repeated to a shape."""
        return TensorHandle(_repeated(arg.data, (len(arg.data), *shape)), arg.dtype.scalar)

    def create_reshape(self, arg: Any, shape: Any, allow_reorder: bool) -> Any:
        """The same values in another shape."""
        return TensorHandle(arg.data.reshape(len(arg.data), *shape), arg.dtype.scalar)

    def create_trans(self, arg: Any, perm: Any) -> Any:
        """Axes in another order."""
        return TensorHandle(np.transpose(arg.data, (0, *[axis + 1 for axis in perm])), arg.dtype.scalar)

    def create_join(self, lhs: Any, rhs: Any) -> Any:
        """Pairs along a last axis."""
        return TensorHandle(np.stack(np.broadcast_arrays(lhs.data, rhs.data), -1), lhs.dtype.scalar)

    def create_gather(self, src: Any, indices: Any, axis: int) -> Any:
        """Values at indices along an axis."""
        return TensorHandle(np.take_along_axis(src.data, indices.data, axis + 1), src.dtype.scalar)

    def create_histogram(self, data: Any, bins: int, mask: Any) -> Any:
        """How often each of `bins` numbers occurs."""
        live = (data.data >= 0) & (data.data < bins)
        values, live = np.broadcast_arrays(data.data, live if mask is None else live & mask.data)
        row = np.arange(len(values))[:, None] * bins
        counts = np.bincount((row + values)[live], minlength=len(values) * bins)
        return TensorHandle(counts.reshape(len(values), bins).astype(np.int32), tl.int32)


def _repeated(data: Any, shape: tuple[Any, ...]) -> Any:
    """numpy's broadcast_to in a third of its time."""
    walk = np.nditer(data, ["multi_index", "zerosize_ok"], [["readonly"]], itershape=shape, order="C")
    return walk.itviews[0]


def _everywhere(pointers: Any) -> Any:
    ndim = pointers.starts.ndim if isinstance(pointers, _rows.Rows) else pointers.data.ndim
    return TensorHandle(np.ones((1,) * ndim, bool), tl.int1)


def _constant(name: str) -> Any:
    make = getattr(InterpreterBuilder, name)

    def constant(self: Any, value: Any) -> Any:
        handle = make(self, value)
        handle.data = handle.data.reshape(1, 1)
        return handle

    return constant


def _refuse(*_: Any, **__: Any) -> None:
    raise _Alone


SINGLE = ("atomic", "descriptor", "block_ptr", "tensor_pointer", "print", "assert", "create_cat")
for _name in [name for name in dir(InterpreterBuilder) if name.startswith(("get_", "create_"))]:
    if _name.startswith(("get_int", "get_uint", "get_fp", "get_null", "get_all")) and "_ty" not in _name:
        setattr(_Builder, _name, _constant(_name))
    elif any(word in _name for word in SINGLE):
        setattr(_Builder, _name, _refuse)


def _same(tensor: Any) -> Any:
    """The one number that all programs have."""
    values = tensor.handle.data.reshape(-1)
    if (values != values[0]).any():
        raise _Split(values)
    return values[0]


def _truth(tensor: Any) -> bool:
    return True if tensor.type.is_block() and tensor.numel.value > 1 else bool(_same(tensor))


def _number(tensor: Any) -> int:
    return int(_same(tensor))


def _result(data: Any, shape: list[int], like: Any) -> Any:
    kind = like.dtype
    handle = TensorHandle(data.astype(interpreter._get_np_dtype(kind)), kind)
    return tl.tensor(handle, tl.block_type(kind, shape) if shape else kind)


def _reduce(input: Any, axis: Any, combine_fn: Any, keep_dims: bool = False, **_: Any) -> Any:
    known = {
        tl.standard._sum_combine: np.sum,
        tl.standard._elementwise_max: np.nanmax,
        tl.standard._elementwise_min: np.nanmin,
    }
    if combine_fn not in known or isinstance(input, tuple | tl.tuple) or (axis is None and keep_dims):
        raise _Alone
    data = input.handle.data
    if axis is None:
        return _result(known[combine_fn](data.reshape(len(data), -1), axis=1)[:, None], [], input)
    shape = [size.value for size in input.shape]
    place = axis % len(shape)
    data = known[combine_fn](data, axis=place + 1, keepdims=keep_dims)
    shape[place : place + 1] = [1] if keep_dims else []
    return _result(data if shape else data.reshape(-1, 1), shape, input)


def _scan(input: Any, axis: Any, combine_fn: Any, reverse: bool = False, **_: Any) -> Any:
    if combine_fn is not tl.standard._sum_combine or reverse or isinstance(input, tuple | tl.tuple):
        raise _Alone
    shape = [size.value for size in input.shape]
    return _result(np.cumsum(input.handle.data, axis=axis % len(shape) + 1), shape, input)
