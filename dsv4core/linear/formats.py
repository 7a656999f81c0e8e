"""Weight formats as data: the types of codes and scales, and how many values share one of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4core.numerics import block_fp8, group_fp4

F32, U8 = torch.float32, torch.uint8
BLOCK = (block_fp8.BLOCK, block_fp8.BLOCK)
E4M3, E8M0 = torch.float8_e4m3fn, torch.float8_e8m0fnu


@dataclass(frozen=True)
class WeightFormat:
    """One way to store a matrix [out, in].

    `pack` values of a row share one stored code; `block` = (rows, inputs) share one scale, None without
    scales; `factor` says whether one f32 multiplies everything. Blocks may be cut off by the matrix where
    `ragged` is set.
    """

    id: str
    codes: tuple[torch.dtype, ...]
    pack: int = 1
    block: tuple[int, int] | None = None
    scales: tuple[torch.dtype, ...] = ()
    factor: bool = False
    ragged: bool = False

    def code_shape(self, rows: int, inputs: int) -> tuple[int, int]:
        """Shape of the stored codes of a matrix."""
        return rows, inputs // self.pack

    def scale_shape(self, rows: int, inputs: int) -> tuple[int, int]:
        """Shape of the scales of a matrix."""
        down, across = self.block or (1, 1)
        return -(-rows // down), -(-inputs // across)

    def dequantise(self, codes: Tensor, scales: Tensor, factor: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The matrix of quantised codes. Shapes: as stored -> dtype [out, in]."""
        if self.ragged:
            return block_fp8.dequantise(codes, scales, dtype)
        return group_fp4.dequantise(codes, scales, factor).to(dtype)


FORMATS = {
    found.id: found
    for found in (
        WeightFormat("bf16", (torch.bfloat16, F32)),
        WeightFormat("fp8_block", (E4M3,), block=BLOCK, scales=(F32, E8M0, U8), ragged=True),
        WeightFormat("nvfp4", (U8,), pack=2, block=(1, group_fp4.NV_GROUP), scales=(E4M3,), factor=True),
        WeightFormat("mxfp4", (U8,), pack=2, block=(1, group_fp4.MX_GROUP), scales=(E8M0, U8)),
    )
}


def format_of(codes: torch.dtype, scales: torch.dtype) -> WeightFormat | None:
    """The quantised format of a pair of types; None when there is none."""
    pairs = [f for f in FORMATS.values() if codes in f.codes and scales in f.scales]
    return pairs[0] if pairs else None
