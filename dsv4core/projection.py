"""A weight matrix of a layer in whatever format it is stored."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4core.ops import OpTable


@dataclass(frozen=True)
class Projection:
    """`linear`'s weight arguments.

    Shapes: weight [out, in] (or packed), scales and global_scale as `linear` says.
    """

    weight: Tensor
    scales: Tensor | None = None
    global_scale: Tensor | None = None
    format: str = "bf16"

    def __call__(self, ops: OpTable, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        """x @ weight^T. Shapes: x [T, in] -> [T, out] in `out_dtype` (x's own if None)."""
        dtype = x.dtype if out_dtype is None else out_dtype
        return ops.linear(x, self.weight, self.scales, self.global_scale, format=self.format, out_dtype=dtype)

    @staticmethod
    def joined(*weights: Tensor) -> Projection:
        """Several projections of the same input as one matrix: one product, split by columns afterwards."""
        return Projection(torch.cat(weights))
