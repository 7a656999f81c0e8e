"""`index_fp8`: the indexer's keys as 128 e4m3 values and one f32 power of two."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4core.layout.base import CacheLayout
from dsv4core.layout.geometry import CacheField
from dsv4core.layout.rounding import as_bytes, blocks, finite_bf16, from_bytes, scaled
from dsv4core.numerics import e4m3, ue8m0

WIDTH = 128


class IndexFp8(CacheLayout):
    """One scale 2^E per row, stored as an f32 that readers multiply by."""

    def _encode(self, values: Tensor) -> Tensor:
        grouped, amax = blocks(finite_bf16(values), WIDTH)
        exponent = ue8m0.exponent_e4m3(amax.clamp(min=ue8m0.FLOOR_E4M3))
        codes = e4m3.encode(scaled(grouped, exponent)).flatten(-2)
        return torch.cat((codes, as_bytes(ue8m0.exp2(exponent))), dim=-1)

    def _decode(self, record: Tensor) -> Tensor:
        scale = from_bytes(record[..., WIDTH:], torch.float32)
        return (e4m3.decode(record[..., :WIDTH]) * scale).to(torch.bfloat16)


LAYOUT = IndexFp8(
    id="index_fp8",
    family="index",
    width=WIDTH,
    row_fields=(CacheField(name="key", offset=0, dtype="e4m3fn", count=WIDTH),),
    tail_fields=(CacheField(name="scale", offset=0, dtype="f32", count=1),),
    alignment=576,
    value_dtype="bf16",
    block=WIDTH,
    summary="indexer K: 128 e4m3 per row, then one f32 scale 2^E per row behind all rows",
)
