"""`index_mxfp4` and `index_mxfp4_hadamard`: the indexer's keys in four bits, 68 bytes a row."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4core.layout.base import CacheLayout
from dsv4core.layout.geometry import CacheField
from dsv4core.layout.rounding import blocks, finite_bf16, in_blocks, scaled
from dsv4core.numerics import e2m1, ue8m0

WIDTH = 128
BLOCK = 32
PACKED = WIDTH // 2


class IndexMxfp4(CacheLayout):
    """128 e2m1 values, even element in the low nibble, with a UE8M0 byte per 32.

    The rotated variant has the same bytes: whoever writes rotates before `encode`, and `decode` gives rotated
    values, because the scores are taken in the rotated basis.
    """

    def _encode(self, values: Tensor) -> Tensor:
        grouped, amax = blocks(finite_bf16(values), BLOCK)
        exponent = ue8m0.exponent_e2m1(amax.clamp(min=ue8m0.FLOOR_E2M1))
        codes = e2m1.encode(scaled(grouped, exponent)).flatten(-2)
        return torch.cat((e2m1.pack(codes), ue8m0.to_byte(exponent)), dim=-1)

    def _decode(self, record: Tensor) -> Tensor:
        codes = in_blocks(e2m1.unpack(record[..., :PACKED]), BLOCK)
        scale = ue8m0.exp2(ue8m0.byte_exponent(record[..., PACKED:]))
        return (e2m1.decode(codes) * scale.unsqueeze(-1)).flatten(-2).to(torch.bfloat16)


LAYOUT = IndexMxfp4(
    id="index_mxfp4",
    family="index",
    width=WIDTH,
    row_fields=(CacheField(name="key", offset=0, dtype="e2m1x2", count=PACKED),),
    tail_fields=(CacheField(name="scale", offset=0, dtype="ue8m0", count=WIDTH // BLOCK),),
    alignment=576,
    value_dtype="bf16",
    block=BLOCK,
    summary="indexer K: 64 bytes of e2m1 pairs per row, then 4 UE8M0 per row behind all rows",
)

LAYOUT_HADAMARD = IndexMxfp4(
    id="index_mxfp4_hadamard",
    family="index",
    width=WIDTH,
    row_fields=LAYOUT.row_fields,
    tail_fields=LAYOUT.tail_fields,
    alignment=576,
    value_dtype="bf16",
    block=BLOCK,
    rotate="hadamard",
    summary="the bytes of index_mxfp4, values rotated by Hadamard-128 before they are quantised",
)
