"""`fp8_row`: 512 e4m3 values per row and one scale outside of the page, which is 1."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4core.layout.base import CacheLayout
from dsv4core.layout.geometry import CacheField
from dsv4core.layout.rounding import finite_f32
from dsv4core.numerics import e4m3


class Fp8Row(CacheLayout):
    """The codes of the values themselves, saturating at +-448.

    Nothing is rounded to bf16 first: window rows come straight from f32 (CA1 rule 9). Entries are rounded by
    the op that makes them.
    """

    def _encode(self, values: Tensor) -> Tensor:
        return e4m3.encode(finite_f32(values))

    def _decode(self, record: Tensor) -> Tensor:
        return e4m3.decode(record, torch.bfloat16)


LAYOUT = Fp8Row(
    id="fp8_row",
    family="main",
    width=512,
    row_fields=(CacheField(name="value", offset=0, dtype="e4m3fn", count=512),),
    alignment=512,
    value_dtype="bf16",
    summary="512 e4m3 per row with one external scale of 1: pages of FlashInfer engines",
)
