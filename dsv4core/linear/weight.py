"""A projection as a checkpoint stores it: quantised codes and the scales that belong to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from dsv4core.errors import WeightsError
from dsv4core.linear.formats import FORMATS, WeightFormat, format_of

E4M3_NAN = 0x7F  # with either sign
CHUNK = 16 << 20  # codes that are looked at together


@dataclass(frozen=True, eq=False)
class QuantisedWeight:
    """A matrix [out, in] in one of the quantised `FORMATS`.

    Shapes: weight and scales as the format says, global_scale f32 [1] where it has one. Looks like a tensor
    where a layer asks: `shape`, `dtype`, `device`, `to`. Raises WeightsError for parts that do not belong
    together.
    """

    weight: Tensor
    scales: Tensor
    global_scale: Tensor | None = None

    def __post_init__(self) -> None:
        problem = self.problem(self.weight, self.scales, self.global_scale)
        if problem:
            raise WeightsError(f"quantised weight: {problem}")
        if self.global_scale is not None:  # checkpoints have it without a dimension, or with two
            object.__setattr__(self, "global_scale", self.global_scale.reshape(1))

    @staticmethod
    def problem(weight: Tensor, scales: Tensor, global_scale: Tensor | None = None) -> str:
        """What is wrong with the parts, in words; empty when nothing is."""
        found = format_of(weight.dtype, scales.dtype)
        if found is None or weight.ndim != 2:
            return _no_format(weight, scales)
        rows, inputs = weight.shape[0], weight.shape[1] * found.pack
        want = found.scale_shape(rows, inputs)
        down, across = found.block or (1, 1)
        if tuple(scales.shape) != want or (not found.ragged and inputs % across):
            return (
                f"the scales are {describe(scales)}, expected {list(want)}: one per {down} x {across} block"
                f" of {[rows, inputs]} in {found.id}"
            )
        if (global_scale is not None) != found.factor:
            return f"{found.id} {'needs one' if found.factor else 'has no'} f32 factor beside its scales"
        parts = {"codes": weight, "scales": scales, "factor": global_scale}
        places = {name: str(part.device) for name, part in parts.items() if part is not None}
        if len(set(places.values())) > 1:
            where = ", ".join(f"{name} on {place}" for name, place in places.items())
            return f"{where}; one device has to hold them all".replace(" on", " are on", 1)
        if global_scale is not None and (global_scale.numel() != 1 or global_scale.dtype != torch.float32):
            return f"the factor is {describe(global_scale)}, expected one float32"
        return ""

    @property
    def format(self) -> WeightFormat:
        """How the matrix is stored."""
        found = format_of(self.weight.dtype, self.scales.dtype)
        assert found is not None
        return found

    @property
    def shape(self) -> torch.Size:
        """Of the matrix."""
        return torch.Size((self.weight.shape[0], self.weight.shape[1] * self.format.pack))

    @property
    def dtype(self) -> torch.dtype:
        """Of the codes."""
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the codes are."""
        return self.weight.device

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and factor."""
        return sum(part.nbytes for part in (self.weight, self.scales, self.global_scale) if part is not None)

    def to(self, device: torch.device | str) -> QuantisedWeight:
        """A copy on a device."""
        factor = None if self.global_scale is None else self.global_scale.to(device)
        return QuantisedWeight(self.weight.to(device), self.scales.to(device), factor)

    def check_values(self) -> None:
        """Raise WeightsError for codes, scales or a factor that are no numbers.

        UE8M0 scales are all numbers here (byte 255 reads as 2^127), and so is every e2m1 code. Tensors
        without values, on meta or fake, pass.
        """
        if self.device.type == "meta" or isinstance(self.weight, FakeTensor):
            return
        for name, part in (("codes", self.weight), ("scales", self.scales), ("factor", self.global_scale)):
            if part is not None and _strange(part):
                raise WeightsError(
                    f"a weight {list(self.shape)} in {self.format.id}: NaN or Inf in the {name}; read or"
                    " quantise it anew"
                )

    def dequantised(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix itself. Shapes: -> dtype [out, in]."""
        return self.format.dequantise(self.weight, self.scales, self.global_scale, dtype)


Weight: TypeAlias = Tensor | QuantisedWeight


def dense(weight: Weight, dtype: torch.dtype) -> Tensor:
    """The matrix of a weight in any format. Shapes: -> dtype [out, in]."""
    return weight.to(dtype) if isinstance(weight, Tensor) else weight.dequantised(dtype)


def format_id(weight: Weight) -> str:
    """The id of a weight's format."""
    return FORMATS["bf16"].id if isinstance(weight, Tensor) else weight.format.id


def joined(weights: Sequence[Weight]) -> Weight | None:
    """Matrices of the same inputs below each other; None where a block of scales or a factor would not fit.

    Shapes: [out_i, in] each -> [sum of out, in].
    """
    if len(weights) == 1:
        return weights[0]
    plain = [w for w in weights if isinstance(w, Tensor)]
    if len(plain) == len(weights):
        return torch.cat(plain) if len({w.dtype for w in plain}) == 1 else None
    quantised = [w for w in weights if isinstance(w, QuantisedWeight)]
    if plain or len({(w.format.id, w.scales.dtype) for w in quantised}) > 1 or quantised[0].format.factor:
        return None
    down, _ = quantised[0].format.block or (1, 1)
    if any(w.shape[0] % down for w in quantised[:-1]):
        return None
    return QuantisedWeight(_cat([w.weight for w in quantised]), _cat([w.scales for w in quantised]))


def describe(tensor: Tensor) -> str:
    """Type and shape as messages show them."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _cat(tensors: Sequence[Tensor]) -> Tensor:
    """Rows below each other; one-byte floats travel as bytes, which every device can copy."""
    dtype = tensors[0].dtype
    if dtype.itemsize > 1:
        return torch.cat(list(tensors))
    return torch.cat([t.view(torch.uint8) for t in tensors]).view(dtype)


def _strange(part: Tensor) -> bool:
    """Whether there is a NaN or Inf, found without a copy in another type. e4m3 has no Inf."""
    if part.dtype == torch.float32:
        return not bool(torch.isfinite(part).all())
    if part.dtype != torch.float8_e4m3fn:
        return False
    stored, rows = part.view(torch.uint8), max(CHUNK // max(part.shape[1], 1), 1)
    pieces = [stored[start : start + rows] for start in range(0, stored.shape[0], rows)]
    found = [((piece & E4M3_NAN) == E4M3_NAN).any() for piece in pieces]
    return bool(found) and bool(torch.stack(found).any())  # one stop of a device


def _no_format(weight: Tensor, scales: Tensor) -> str:
    known = [f"{_names(f.codes)} with {_names(f.scales)} ({name})" for name, f in FORMATS.items() if f.block]
    return (
        f"the codes are {describe(weight)} and the scales are {describe(scales)}; expected [out, in] of"
        f" {', '.join(known)}"
    )


def _names(types: Sequence[torch.dtype]) -> str:
    return " or ".join(str(t).removeprefix("torch.") for t in types)
