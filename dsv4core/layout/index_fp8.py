"""`index_fp8`, `index_fp8_ue8m0x4`, `index_fp8_hadamard_f32`: 128 e4m3 values and four bytes of scale.

The same sizes and places in all three; what the codes and the four bytes mean differs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4core.layout.base import CacheLayout
from dsv4core.layout.geometry import CacheField
from dsv4core.layout.rounding import as_bytes, blocks, finite_bf16, from_bytes, scaled
from dsv4core.numerics import e4m3, ue8m0

WIDTH = 128
COPIES = 4


class IndexFp8(CacheLayout):
    """One scale 2^E per row, stored as an f32 that readers multiply by."""

    def _encode(self, values: Tensor) -> Tensor:
        grouped, amax = blocks(finite_bf16(values), WIDTH)
        exponent = ue8m0.exponent_e4m3(amax.clamp(min=ue8m0.FLOOR_E4M3))
        codes = e4m3.encode(scaled(grouped, exponent)).flatten(-2)
        return torch.cat((codes, self._tail(exponent)), dim=-1)

    def _decode(self, record: Tensor) -> Tensor:
        return (e4m3.decode(record[..., :WIDTH]) * self._scale(record[..., WIDTH:])).to(torch.bfloat16)

    def _tail(self, exponent: Tensor) -> Tensor:
        return as_bytes(ue8m0.exp2(exponent))

    def _scale(self, tail: Tensor) -> Tensor:
        return from_bytes(tail, torch.float32)


class IndexFp8Ue8m0x4(IndexFp8):
    """The exponent as four copies of its UE8M0 byte, which DeepGEMM takes as one packed word.

    Readers here take the first copy.
    """

    def _tail(self, exponent: Tensor) -> Tensor:
        return ue8m0.to_byte(exponent).expand(*exponent.shape[:-1], COPIES)

    def _scale(self, tail: Tensor) -> Tensor:
        return ue8m0.exp2(ue8m0.byte_exponent(tail[..., :1]))


class IndexFp8HadamardF32(CacheLayout):
    """A scale S = max(amax, 1e-4) / 448 that is no power of two (CA1 rule 9), for rotated values.

    A code times S needs 28 bits: `decode` rounds it to f32, `factors` keeps the two apart.
    """

    def factors(self, record: Tensor) -> tuple[Tensor, Tensor | None]:
        """Codes as numbers and S. Shapes: u8 [..., 132] -> f32 [..., 128], f32 [...]."""
        return e4m3.decode(record[..., :WIDTH]), from_bytes(record[..., WIDTH:], torch.float32).squeeze(-1)

    def _encode(self, values: Tensor) -> Tensor:
        row = finite_bf16(values).float()
        scale = plain_scale(row)
        return torch.cat((e4m3.encode(row / scale), as_bytes(scale)), dim=-1)

    def _decode(self, record: Tensor) -> Tensor:
        codes, scale = self.factors(record)
        assert scale is not None
        return codes * scale.unsqueeze(-1)


def plain_scale(rows: Tensor) -> Tensor:
    """max(amax, 1e-4) / 448 of each row, one IEEE division. Shapes: f32 [..., n] -> f32 [..., 1]."""
    amax = rows.abs().amax(dim=-1, keepdim=True).clamp(min=ue8m0.FLOOR_E4M3)
    return amax / torch.full_like(amax, e4m3.MAX)  # by a number, CUDA would multiply with its reciprocal


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

LAYOUT_UE8M0X4 = IndexFp8Ue8m0x4(
    id="index_fp8_ue8m0x4",
    family="index",
    width=WIDTH,
    row_fields=LAYOUT.row_fields,
    tail_fields=(CacheField(name="scale", offset=0, dtype="ue8m0", count=COPIES),),
    alignment=576,
    value_dtype="bf16",
    block=WIDTH,
    summary="index_fp8 with the scale as 4 copies of its UE8M0 byte: pages of SM100 engines",
)

LAYOUT_HADAMARD_F32 = IndexFp8HadamardF32(
    id="index_fp8_hadamard_f32",
    family="index",
    width=WIDTH,
    row_fields=LAYOUT.row_fields,
    tail_fields=LAYOUT.tail_fields,
    alignment=576,
    value_dtype="f32",
    block=WIDTH,
    rotate="hadamard",
    summary="128 e4m3 of Hadamard-rotated values, one f32 scale amax/448 per row: pages of SGLang",
)
