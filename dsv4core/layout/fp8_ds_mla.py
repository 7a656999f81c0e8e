"""`fp8_ds_mla`, the 584-byte row of window and compressed K, and the same with FNUZ codes."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4core.layout.base import CacheLayout
from dsv4core.layout.geometry import CacheField
from dsv4core.layout.rounding import as_bytes, blocks, finite_bf16, from_bytes, in_blocks, scaled
from dsv4core.numerics import e4m3, ue8m0
from dsv4core.slots import slot_rows

NOPE = 448
BLOCK = 64
SCALES = NOPE // BLOCK


class Fp8DsMla(CacheLayout):
    """448 e4m3 values with a power-of-two scale per 64, then 64 rotated values in bf16."""

    def _encode(self, values: Tensor) -> Tensor:
        row = finite_bf16(values)
        grouped, amax = blocks(row[..., :NOPE], BLOCK)
        exponent = self._exponent(amax.clamp(min=ue8m0.FLOOR_E4M3))
        codes = self._codes(scaled(grouped, exponent)).flatten(-2)
        scales = torch.nn.functional.pad(ue8m0.to_byte(exponent), (0, 1))
        return torch.cat((codes, as_bytes(row[..., NOPE:]), scales), dim=-1)

    def load(self, out: Tensor, pages: Tensor, slots: Tensor, rows: int) -> None:
        """As everywhere, but without records and values of its own between pages and `out`."""
        self._fill(out, *(slot_rows(part, slots) for part in self.parts(pages, rows)))

    def _decode(self, record: Tensor) -> Tensor:
        out = record.new_empty((*record.shape[:-1], self.values), dtype=torch.bfloat16)
        self._fill(out, record[..., : self.row_bytes], record[..., self.row_bytes :])
        return out

    def _fill(self, out: Tensor, row: Tensor, tail: Tensor) -> None:
        scale = ue8m0.exp2(ue8m0.byte_exponent(tail))[..., :SCALES].to(out.dtype)
        values = in_blocks(self._values(row[..., :NOPE]).to(out.dtype), BLOCK)
        torch.mul(values, scale.unsqueeze(-1), out=in_blocks(out[..., :NOPE], BLOCK))
        out[..., NOPE:] = from_bytes(row[..., NOPE:], torch.bfloat16)

    def _exponent(self, amax: Tensor) -> Tensor:
        return ue8m0.exponent_e4m3(amax)

    def _codes(self, x: Tensor) -> Tensor:
        return e4m3.encode(x)

    def _values(self, codes: Tensor) -> Tensor:
        return e4m3.decode(codes, torch.bfloat16)


class Fp8DsMlaFnuz(Fp8DsMla):
    """The same record in the dialect of gfx942: F = 224, so E is one larger, and no negative zero."""

    def _exponent(self, amax: Tensor) -> Tensor:
        return ue8m0.exponent_e4m3_fnuz(amax)

    def _codes(self, x: Tensor) -> Tensor:
        return e4m3.encode_fnuz(x)

    def _values(self, codes: Tensor) -> Tensor:
        return e4m3.decode_fnuz(codes, torch.bfloat16)


LAYOUT = Fp8DsMla(
    id="fp8_ds_mla",
    family="main",
    width=512,
    row_fields=(
        CacheField(name="nope", offset=0, dtype="e4m3fn", count=NOPE),
        CacheField(name="rope", offset=NOPE, dtype="bf16", count=64),
    ),
    tail_fields=(
        CacheField(name="scale", offset=0, dtype="ue8m0", count=SCALES),
        CacheField(name="scale_pad", offset=SCALES, dtype="zero", count=1),
    ),
    alignment=576,
    value_dtype="bf16",
    block=BLOCK,
    summary="window and compressed K: 448 e4m3 + 64 rotated bf16 per row, scales behind all rows",
)

LAYOUT_FNUZ = Fp8DsMlaFnuz(
    id="fp8_ds_mla_fnuz",
    family="main",
    width=512,
    row_fields=(
        CacheField(name="nope", offset=0, dtype="e4m3fnuz", count=NOPE),
        CacheField(name="rope", offset=NOPE, dtype="bf16", count=64),
    ),
    tail_fields=LAYOUT.tail_fields,
    alignment=576,
    value_dtype="bf16",
    block=BLOCK,
    summary="fp8_ds_mla with FNUZ codes (F = 224): window pages of AMD gfx942 engines",
)
