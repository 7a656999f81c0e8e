"""Rows of plain numbers: `bf16_row`, `f32_row`, `index_f32`, and the compressor's `state_f32`."""

from __future__ import annotations

from torch import Tensor

from dsv4core.layout.base import CacheLayout
from dsv4core.layout.geometry import CacheField
from dsv4core.layout.rounding import as_bytes, finite_bf16, finite_f32, from_bytes


class PlainRow(CacheLayout):
    """One value after the other in `value_dtype`; f32 rows are not rounded to bf16."""

    def _encode(self, values: Tensor) -> Tensor:
        return as_bytes(finite_f32(values) if self.value_dtype == "f32" else finite_bf16(values))

    def _decode(self, record: Tensor) -> Tensor:
        return from_bytes(record, self.dtype)


class StateRow(PlainRow):
    """A compressor's state of one token: W values of kv, then W of score with ape added, all f32.

    The registered object has no width, since it is 1024, 512 or 256 by compressor: `sized(W)` gives it one.
    """

    @property
    def values(self) -> int:
        """Both halves: 2W."""
        return 2 * self._width()

    def sized(self, width: int) -> StateRow:
        """The state of a compressor whose projections are `width` wide (`config.state_width`)."""
        return StateRow(
            id=self.id,
            version=self.version,
            family=self.family,
            width=width,
            row_fields=(
                CacheField(name="kv", offset=0, dtype="f32", count=width),
                CacheField(name="score", offset=4 * width, dtype="f32", count=width),
            ),
            alignment=self.alignment,
            value_dtype=self.value_dtype,
            summary=self.summary,
        )


BF16_ROW = PlainRow(
    id="bf16_row",
    family="main",
    width=512,
    row_fields=(CacheField(name="value", offset=0, dtype="bf16", count=512),),
    alignment=512,
    value_dtype="bf16",
    summary="512 bf16 per row: accuracy, and hardware without fp8",
)
F32_ROW = PlainRow(
    id="f32_row",
    family="main",
    width=512,
    row_fields=(CacheField(name="value", offset=0, dtype="f32", count=512),),
    alignment=1,
    value_dtype="f32",
    summary="512 f32 per row: profile math",
)
INDEX_F32 = PlainRow(
    id="index_f32",
    family="index",
    width=128,
    row_fields=(CacheField(name="key", offset=0, dtype="f32", count=128),),
    alignment=1,
    value_dtype="f32",
    summary="indexer K as 128 f32 per row: profile math",
)
STATE_F32 = StateRow(
    id="state_f32",
    family="state",
    width=None,
    row_fields=(),
    alignment=576,
    value_dtype="f32",
    summary="compressor state: kv W f32, then score + ape W f32",
)
