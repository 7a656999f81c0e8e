"""What an op demands of its arguments, checked before any kernel sees them.

Shapes are words over symbols ("T", "H", "512", "2*W"): a symbol takes the first size it meets, a parameter's
name (`rows`, `ratio`) stands for its value, "<=T" allows fewer. One error names op, argument, expected and
got.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from dsv4core.errors import OpArgumentError

BF16, F32, U8, I32, I64 = torch.bfloat16, torch.float32, torch.uint8, torch.int32, torch.int64
BOOL, E4M3, E8M0 = torch.bool, torch.float8_e4m3fn, torch.float8_e8m0fnu
ACTIVATION = (BF16, F32)  # f32 in profile `math` only
NORM = (BF16, F32)


@dataclass(frozen=True)
class TensorSpec:
    """Contract of one tensor argument.

    `strides`: "last" needs stride(-1) = 1 (column slices and any row stride are legal), "page" also needs
    stride(0) >= the page's bytes, "any" nothing. `finite`: NaN and Inf are a caller's error (checked mode).
    """

    shape: str
    dtypes: tuple[torch.dtype, ...]
    optional: bool = False
    finite: bool = True
    strides: str = "last"


def spec(
    shape: str, *dtypes: torch.dtype, optional: bool = False, finite: bool = True, strides: str = "last"
) -> TensorSpec:
    """Shorthand for a `TensorSpec`."""
    return TensorSpec(shape, dtypes, optional, finite, strides)


def page() -> TensorSpec:
    """A byte cache: u8 [N, B] with stride(1) = 1 and stride(0) >= B."""
    return TensorSpec("N B", (U8,), strides="page")


def check_mode() -> str:
    """`DSV4CORE_CHECK`: "0", "1", or "" (value checks on CPU tensors only)."""
    return os.environ.get("DSV4CORE_CHECK", "")


class Contract:
    """Checks one op's arguments; holds nothing but the parsed declaration."""

    def __init__(
        self,
        op: str,
        tensors: Mapping[str, TensorSpec],
        signature: inspect.Signature,
        values: Callable[[Mapping[str, Any], Mapping[str, int]], None] | None,
    ) -> None:
        self.op = op
        self.tensors = [(name, s, s.shape.split()) for name, s in tensors.items()]
        self.names = tuple(signature.parameters)
        self.defaults = {n: p.default for n, p in signature.parameters.items() if p.default is not p.empty}
        self.kinds = {
            n: p.annotation for n, p in signature.parameters.items() if p.annotation in (int, float, str)
        }
        self.values = values

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments by name; a missing, doubled or unknown one is an error that lists the parameters."""
        if len(args) > len(self.names):
            self.refuse("arguments", f"at most {len(self.names)}: {', '.join(self.names)}", str(len(args)))
        bound = dict(zip(self.names, args, strict=False))
        for name, value in kwargs.items():
            if name not in self.names or name in bound:
                self.refuse(name, f"one of {', '.join(self.names)}, given once", "unknown or given twice")
            bound[name] = value
        for name in self.names:
            if name not in bound:
                if name not in self.defaults:
                    self.refuse(name, f"a value (arguments: {', '.join(self.names)})", "nothing")
                bound[name] = self.defaults[name]
        return {name: bound[name] for name in self.names}

    def check(self, bound: Mapping[str, Any], mode: str) -> None:
        """Shape, dtype, device and stride always; numbers inside tensors when `mode` asks for it."""
        for name, kind in self.kinds.items():
            value = bound[name]
            if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
                self.refuse(name, kind.__name__, f"{type(value).__name__} {value!r}")
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
            elif tensor.device != device:
                self.refuse(name, f"device {device}, like the tensors before it", str(tensor.device))
            if tensor.dtype not in s.dtypes:
                self.refuse(name, " or ".join(str(d) for d in s.dtypes), str(tensor.dtype))
            self._check_shape(name, s, words, tensor, bound, dims)
            self._check_strides(name, s, tensor)
        if device is None:
            return
        if mode == "1" or (mode != "0" and device.type == "cpu"):
            self._check_finite(bound)
            if self.values is not None:
                self.values(bound, dims)

    def _check_shape(
        self,
        name: str,
        s: TensorSpec,
        words: list[str],
        tensor: Tensor,
        bound: Mapping[str, Any],
        dims: dict[str, int],
    ) -> None:
        got = tuple(tensor.shape)
        if len(got) != len(words):
            self.refuse(name, f"{len(words)} dimensions [{s.shape}]", f"shape {list(got)}")
        for word, size in zip(words, got, strict=True):
            at_most = word.startswith("<=")
            symbol = word.removeprefix("<=")
            expected = self._size(symbol, bound, dims)
            if expected is None:
                dims[symbol] = size
            elif size > expected or (size < expected and not at_most):
                sign = "<= " if at_most else ""
                self.refuse(name, f"shape [{s.shape}] with {symbol} {sign}{expected}", f"shape {list(got)}")

    @staticmethod
    def _size(symbol: str, bound: Mapping[str, Any], dims: Mapping[str, int]) -> int | None:
        """The size a word stands for, None while its symbol is free."""
        factor, _, rest = symbol.rpartition("*")
        times = int(factor) if factor else 1
        if rest.isdigit():
            return times * int(rest)
        if rest in dims:
            return times * dims[rest]
        return times * int(bound[rest]) if rest in bound else None

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

    def _check_finite(self, bound: Mapping[str, Any]) -> None:
        for name, s, _ in self.tensors:
            tensor = bound[name]
            if tensor is None or not s.finite or tensor.dtype not in ACTIVATION:
                continue
            if tensor.numel() and not bool(torch.isfinite(tensor).all()):
                where = (~torch.isfinite(tensor)).nonzero()[0].tolist()
                self.refuse(name, "finite values", f"{tensor[tuple(where)].item()} at {where}")

    def refuse(self, argument: str, expected: str, got: str) -> NoReturn:
        """Raise the one documented error."""
        raise OpArgumentError(self.op, argument, expected, got)


def check_range(op: str, name: str, tensor: Tensor, low: int, high: int, what: str) -> None:
    """Value check: every element in [low, high)."""
    if tensor.numel() == 0:
        return
    smallest, largest = (int(v) for v in torch.aminmax(tensor))
    if smallest < low or largest >= high:
        bad = smallest if smallest < low else largest
        where = (tensor == bad).nonzero()[0].tolist()
        raise OpArgumentError(op, name, f"{what} in [{low}, {high})", f"{bad} at {where}")


def check_listed(
    op: str, name: str, listed: Tensor, lens: Tensor, lens_name: str, high: int, what: str
) -> None:
    """Value check of a list and its lengths: what lies behind a length is never read, so it may be anything."""
    check_range(op, lens_name, lens, 0, listed.shape[1] + 1, "lengths")
    column = torch.arange(listed.shape[1], device=listed.device)
    check_range(op, name, torch.where(column < lens.unsqueeze(1), listed, -1), -(2**31), high, what)
