"""A projection as a checkpoint stores it: quantised codes and the scales that belong to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from dsv4core.errors import WeightsError
from dsv4core.numerics import block_fp8

SCALE_TYPES = (torch.float32, torch.float8_e8m0fnu, torch.uint8)


@dataclass(frozen=True, eq=False)
class QuantisedWeight:
    """An fp8_block matrix. Shapes: weight float8_e4m3fn [out, in], scales f32 or UE8M0 per 128 x 128 block.

    Looks like a tensor where a layer asks: `shape`, `dtype`, `device`, `to`. Raises WeightsError for
    scales of another shape or type.
    """

    weight: Tensor
    scales: Tensor
    format: str = "fp8_block"

    def __post_init__(self) -> None:
        problem = self.problem(self.weight, self.scales)
        if problem:
            raise WeightsError(f"quantised weight: {problem}")

    @staticmethod
    def problem(weight: Tensor, scales: Tensor) -> str:
        """What is wrong with the pair, in words; empty when nothing is."""
        if weight.dtype != torch.float8_e4m3fn or weight.ndim != 2:
            return f"the codes are {describe(weight)}, expected float8_e4m3fn [out, in]"
        want = block_fp8.scale_shape(*weight.shape)
        if scales.dtype not in SCALE_TYPES or tuple(scales.shape) != want:
            return (
                f"the scales are {describe(scales)}, expected float32, float8_e8m0fnu or uint8 {list(want)}: "
                f"one per 128 x 128 block of {list(weight.shape)}"
            )
        return ""

    @property
    def shape(self) -> torch.Size:
        """Of the matrix."""
        return self.weight.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of the codes."""
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the codes are."""
        return self.weight.device

    def to(self, device: torch.device | str) -> QuantisedWeight:
        """A copy on a device."""
        return QuantisedWeight(self.weight.to(device), self.scales.to(device), self.format)

    def dequantised(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix itself. Shapes: -> dtype [out, in]."""
        return block_fp8.dequantise(self.weight, self.scales, dtype)


Weight: TypeAlias = Tensor | QuantisedWeight


def dense(weight: Weight, dtype: torch.dtype) -> Tensor:
    """The matrix of a weight in any format. Shapes: -> dtype [out, in]."""
    return weight.to(dtype) if isinstance(weight, Tensor) else weight.dequantised(dtype)


def describe(tensor: Tensor) -> str:
    """Type and shape as messages show them."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
