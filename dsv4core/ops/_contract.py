"""What an op demands of its arguments, checked before any kernel sees them.

Shapes are words over symbols ("T", "H", "512", "2*W"): a symbol takes the first size it meets, a parameter's
name (`rows`, `ratio`) stands for its value, "<=T" allows fewer. Pages say which parameters hold their layout
and their rows. One error names op, argument, expected and got; nothing has been written when it is raised.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from dsv4core import env
from dsv4core.errors import OpArgumentError
from dsv4core.ops._rows import page_layout

BF16, F32, U8, I32, I64 = torch.bfloat16, torch.float32, torch.uint8, torch.int32, torch.int64
BOOL, E4M3, E8M0 = torch.bool, torch.float8_e4m3fn, torch.float8_e8m0fnu
ACTIVATION = (BF16, F32)  # f32 in profile `math` only
NORM = (BF16, F32)
CHECK = "DSV4CORE_CHECK"
# (mask, NaN) of one-byte floats.
NAN_BYTES = {E4M3: (0x7F, 0x7F), E8M0: (0xFF, 0xFF)}
HEADS = "H"  # the symbol of heads: a size of 0 has no meaning
# Smallest legal integers by parameter name; an op's `minimum` replaces single ones. No size passes 2^31 - 1.
MINIMUM = {
    "rows": 1, "swa_rows": 1, "extra_rows": 1, "ratio": 1, "k": 1, "groups": 1, "window": 1,
    "padded_heads": 1, "head_dim": 1, "workspace_bytes": 1, "offset": 0, "max_len": 0, "top_k": 0,
    "M": 0, "N": 0, "eps": 0,
}  # fmt: skip
MAXIMUM = {"workspace_bytes": 2**63 - 1}
LARGEST = 2**31 - 1


@dataclass(frozen=True)
class TensorSpec:
    """Contract of one tensor argument.

    `strides`: "last" needs stride(-1) = 1 (column slices and any row stride are legal), "page" also needs
    stride(0) >= the page's bytes, "any" nothing. `finite`: NaN and Inf are a caller's error (checked mode).
    `layout`, `rows` and `families`: the parameters that say what a page is, and which layouts are legal.
    """

    shape: str
    dtypes: tuple[torch.dtype, ...]
    optional: bool = False
    finite: bool = True
    strides: str = "last"
    layout: str = ""
    rows: str = ""
    families: tuple[str, ...] = ()


def spec(
    shape: str, *dtypes: torch.dtype, optional: bool = False, finite: bool = True, strides: str = "last"
) -> TensorSpec:
    """Shorthand for a `TensorSpec`."""
    return TensorSpec(shape, dtypes, optional, finite, strides)


def page(
    *families: str, shape: str = "N B", layout: str = "layout", rows: str = "rows", optional: bool = False
) -> TensorSpec:
    """A byte cache: u8 [N, B] with stride(1) = 1 and stride(0) >= B, in a layout of one of the families."""
    return TensorSpec(
        shape, (U8,), optional, strides="page", layout=layout, rows=rows, families=families or ("main",)
    )


def check_mode() -> str:
    """`DSV4CORE_CHECK`: "0", "1", or "" (value checks on CPU tensors only)."""
    raw = os.environ.get(
        CHECK
    )  # every op call comes by here, so the table of variables has the unusual cases
    return raw or "" if raw in (None, "0", "1") else env.read(CHECK)


Word = tuple[str, int, int | None, bool]  # symbol, factor, its size if it is a number, "or fewer"


def _word(text: str) -> Word:
    """One dimension of a shape: "T", "512", "2*W" or "<=T"."""
    factor, _, symbol = text.removeprefix("<=").rpartition("*")
    number = int(symbol) if symbol.isdigit() else None
    return symbol, int(factor) if factor else 1, number, text.startswith("<=")


class Contract:
    """Checks one op's arguments; holds nothing but the parsed declaration."""

    def __init__(
        self,
        op: str,
        tensors: Mapping[str, TensorSpec],
        signature: inspect.Signature,
        values: Callable[[Mapping[str, Any], Mapping[str, int]], None] | None,
        mutates: tuple[str, ...] = (),
        minimum: Mapping[str, int] | None = None,
    ) -> None:
        self.op = op
        self.tensors = [(name, s, [_word(w) for w in s.shape.split()]) for name, s in tensors.items()]
        self.names = tuple(signature.parameters)
        self.defaults = {n: p.default for n, p in signature.parameters.items() if p.default is not p.empty}
        low = {**MINIMUM, **(minimum or {})}
        self.scalars = [
            (n, p.annotation, low.get(n, -LARGEST), MAXIMUM.get(n, LARGEST))
            for n, p in signature.parameters.items()
            if p.annotation in (int, float, str, torch.dtype)
        ]
        self.values = values
        self.mutates = mutates

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments by name; a missing, doubled or unknown one is an error that lists the parameters."""
        if len(args) > len(self.names):
            self.refuse("arguments", f"at most {len(self.names)}: {', '.join(self.names)}", str(len(args)))
        bound = dict(zip(self.names, args, strict=False))
        for name, value in kwargs.items():
            if name in bound:
                self.refuse(name, "given once", "it by place and by name")
            if name not in self.names:
                near = env.nearest(name, self.names)
                hint = f"; did you mean {near}?" if near else ""
                self.refuse(name, f"one of {', '.join(self.names)}", f"an unknown name{hint}")
            bound[name] = value
        for name in self.names:
            if name not in bound:
                if name not in self.defaults:
                    self.refuse(name, f"a value (arguments: {', '.join(self.names)})", "nothing")
                bound[name] = self.defaults[name]
        return {name: bound[name] for name in self.names}

    def check(self, bound: Mapping[str, Any], mode: str, device_type: str = "") -> None:
        """Shape, dtype, device and stride always; numbers inside tensors when `mode` asks for it.

        All tensors lie on one device, of `device_type` where that is not empty.
        """
        for name, kind, low, high in self.scalars:
            self._check_scalar(name, kind, bound[name], low, high)
        dims: dict[str, int] = {}
        device: torch.device | None = None
        for name, s, words in self.tensors:
            tensor = bound[name]
            if tensor is None and s.optional:
                continue
            if not isinstance(tensor, Tensor):
                self.refuse(name, f"a tensor [{s.shape}]", type(tensor).__name__)
            if device is None:
                device = tensor.device
                if device_type and device.type != device_type:
                    self.refuse(name, f"on a device of type {device_type}, like this backend", str(device))
            elif tensor.device != device:
                self.refuse(name, f"device {device}, like the tensors before it", str(tensor.device))
            if tensor.dtype not in s.dtypes:
                self.refuse(name, " or ".join(str(d) for d in s.dtypes), str(tensor.dtype))
            self._check_shape(name, s, words, tensor, bound, dims)
            self._check_strides(name, s, tensor)
            if s.families:
                page_layout(
                    self.op, bound[s.layout], rows=bound[s.rows], pages=tensor, families=s.families,
                    argument=s.layout, rows_argument=s.rows,
                )  # fmt: skip
        if device is None:
            return
        if mode == "1" or (mode != "0" and device.type == "cpu"):
            self._check_finite(bound)
            if self.values is not None:
                self.values(bound, dims)

    def _check_scalar(self, name: str, kind: type, value: Any, low: int, high: int) -> None:
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or isinstance(value, bool):
            self.refuse(name, kind.__name__, f"{type(value).__name__} {value!r}")
        if kind is float:
            if not math.isfinite(value) or value < low:
                self.refuse(name, "finite" + (f" and >= {low}" if low > -LARGEST else ""), str(value))
        elif kind is int and not low <= value <= high:
            self.refuse(name, f">= {low}" if value < low else f"<= {high}", str(value))

    def _check_shape(
        self,
        name: str,
        s: TensorSpec,
        words: list[Word],
        tensor: Tensor,
        bound: Mapping[str, Any],
        dims: dict[str, int],
    ) -> None:
        got = tuple(tensor.shape)
        if len(got) != len(words):
            self.refuse(name, f"{len(words)} dimensions [{s.shape}]", f"shape {list(got)}")
        for (symbol, times, number, at_most), size in zip(words, got, strict=True):
            if number is None:
                number = dims.get(symbol, bound.get(symbol))
            if number is None:
                if symbol == HEADS and size == 0:
                    self.refuse(name, f"shape [{s.shape}] with at least one head", f"shape {list(got)}")
                dims[symbol] = size
                continue
            expected = times * number
            if size > expected or (size < expected and not at_most):
                sign, factor = "<= " if at_most else "", f"{times}*" if times > 1 else ""
                what = f"shape [{s.shape}] with {factor}{symbol} {sign}{expected}"
                self.refuse(name, what, f"shape {list(got)}")

    def _check_strides(self, name: str, s: TensorSpec, tensor: Tensor) -> None:
        if s.strides == "any" or tensor.numel() == 0:
            return
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            self.refuse(name, "stride(-1) = 1 (call .contiguous())", f"strides {list(tensor.stride())}")
        if s.strides == "page" and tensor.shape[0] > 1 and tensor.stride(0) < tensor[0].numel():
            self.refuse(
                name,
                f"stride(0) >= {tensor[0].numel()}, pages must not overlap",
                f"stride(0) = {tensor.stride(0)}",
            )
        if name in self.mutates and s.strides != "page" and not tensor.is_contiguous() and _overlaps(tensor):
            expected = "elements that do not share memory, since they are written"
            self.refuse(name, expected, f"strides {list(tensor.stride())} for shape {list(tensor.shape)}")

    def _check_finite(self, bound: Mapping[str, Any]) -> None:
        for name, s, _ in self.tensors:
            tensor = bound[name]
            if tensor is None or not s.finite:
                continue
            if tensor.dtype in NAN_BYTES:
                self._check_codes(name, tensor)
            if tensor.dtype not in ACTIVATION:
                continue
            if tensor.numel() and not bool(torch.isfinite(tensor).all()):
                where = _first(~torch.isfinite(tensor))
                self.refuse(name, "finite values", f"{tensor[tuple(where)].item()} at {where}")

    def _check_codes(self, name: str, tensor: Tensor) -> None:
        mask, nan = NAN_BYTES[tensor.dtype]
        bad = (tensor.view(U8) & mask) == nan
        if bool(bad.any()):
            self.refuse(name, "finite values", f"NaN at {_first(bad)}")

    def refuse(self, argument: str, expected: str, got: str) -> NoReturn:
        """Raise the one documented error."""
        raise OpArgumentError(self.op, argument, expected, got)


def _overlaps(tensor: Tensor) -> bool:
    """Whether two elements may share memory: by stride, every dimension must step over the one before."""
    reach = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride < reach:
                return True
            reach = stride * size
    return False


def check_range(op: str, name: str, tensor: Tensor, low: int, high: int, what: str) -> None:
    """Value check: every element in [low, high)."""
    if tensor.numel() == 0:
        return
    smallest, largest = (int(v) for v in torch.aminmax(tensor))
    if smallest < low or largest >= high:
        bad = smallest if smallest < low else largest
        raise OpArgumentError(op, name, f"{what} in [{low}, {high})", f"{bad} at {_first(tensor == bad)}")


def _first(mask: Tensor) -> list[int]:
    """Where the first true element is."""
    return [int(i) for i in mask.nonzero()[0]]


def check_listed(
    op: str, name: str, listed: Tensor, lens: Tensor, lens_name: str, high: int, what: str
) -> None:
    """Value check of a list and its lengths: what lies behind a length is never read and may be anything."""
    check_range(op, lens_name, lens, 0, listed.shape[1] + 1, "lengths")
    column = torch.arange(listed.shape[1], device=listed.device)
    check_range(op, name, torch.where(column < lens.unsqueeze(1), listed, -1), -(2**31), high, what)
