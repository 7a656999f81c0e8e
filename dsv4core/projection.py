"""A weight matrix of a layer in whatever format it is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4core.numerics.block_fp8 import BLOCK
from dsv4core.ops import OpTable
from dsv4core.quantised import QuantisedWeight, Weight


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
    def of(weight: Weight) -> Projection:
        """A plain or quantised matrix."""
        if isinstance(weight, Tensor):
            return Projection(weight)
        return Projection(weight.weight, weight.scales, format=weight.format)

    @staticmethod
    def joined(*weights: Weight) -> Projection | SplitProjection:
        """Several projections of the same input: one product, split by columns afterwards.

        Quantised matrices become one where every block of scales stays whole, and one product each where not.
        """
        plain = [w for w in weights if isinstance(w, Tensor)]
        if len(plain) == len(weights):
            return Projection(torch.cat(plain))
        quantised = [w for w in weights if isinstance(w, QuantisedWeight)]
        same = {(w.scales.dtype, w.format) for w in quantised}
        whole = all(w.shape[0] % BLOCK == 0 for w in quantised[:-1])
        if plain or len(same) > 1 or not whole:
            return SplitProjection(tuple(Projection.of(w) for w in weights))
        scales = [w.scales for w in quantised]
        return Projection(_cat([w.weight for w in quantised]), _cat(scales), format=quantised[0].format)


@dataclass(frozen=True)
class SplitProjection:
    """Projections of the same input that cannot be one matrix; called like one."""

    parts: tuple[Projection, ...]

    def __call__(self, ops: OpTable, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        """Their outputs side by side. Shapes: x [T, in] -> [T, sum of out] in `out_dtype` (x's if None)."""
        return torch.cat([part(ops, x, out_dtype) for part in self.parts], dim=1)


def _cat(tensors: Sequence[Tensor]) -> Tensor:
    """Rows below each other; one-byte floats travel as bytes, which every device can copy."""
    dtype = tensors[0].dtype
    if dtype.itemsize > 1:
        return torch.cat(list(tensors))
    return torch.cat([t.view(torch.uint8) for t in tensors]).view(dtype)
