"""Every field of a page by name: where it lies, its bytes, what they mean, and what is odd about them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dsv4core.layout.base import CacheLayout
from dsv4core.layout.geometry import CacheField
from dsv4core.layout.rounding import from_bytes

LINE_BYTES = {"f32": 16, "bf16": 16, "e2m1x2": 4}  # otherwise 8: eight values, or four of f32


class Piece(NamedTuple):
    """Some items of one field of one row: byte offset in the page, bytes, and their values as numbers.

    `first` and `last` number the channels that the values stand for, or the scales.
    """

    offset: int
    field: str
    row: int | None
    first: int
    last: int
    data: bytes
    values: tuple[float, ...]


def pieces(layout: CacheLayout, page: Tensor, rows: int, *, only: int | None = None) -> Iterator[Piece]:
    """The fields of a page in the order of their bytes, a few items at a time; the padding comes last.

    `only` restricts it to one row. Values of quantised channels have their scale multiplied in.
    Shapes: u8 [B]. Raises LayoutError for pages that are too short.
    """
    parts = layout.parts(page.unsqueeze(0), rows)
    record = torch.cat(parts, dim=-1)[0]
    values = layout.decode(record).double()
    chosen = range(rows) if only is None else (only,)
    for row in chosen:
        channel = 0
        for field in layout.row_fields:
            count = field.count * (2 if field.dtype == "e2m1x2" else 1)
            decoded = values[row, channel : channel + count]
            start = layout.row_offset(row) + field.offset
            yield from _cut(field, row, start, record[row, field.offset :], channel, decoded)
            channel += count
    for row in chosen:
        for field in layout.tail_fields:
            data = record[row, layout.row_bytes + field.offset :][: field.nbytes]
            start = layout.tail_offset(rows, row) + field.offset
            yield from _cut(field, row, start, data, 0, _tail_values(field, data))
    behind = page[rows * layout.record_bytes : layout.page_bytes(rows)]
    if behind.numel() and only is None:
        shown = _bytes(behind[:16])
        yield Piece(rows * layout.record_bytes, "(padding)", None, 0, behind.numel() - 1, shown, ())


def remarks(layout: CacheLayout, page: Tensor, rows: int) -> list[str]:
    """What no writer of this layout would have left in a page, and rows that nobody wrote. Shapes: u8 [B]."""
    record = torch.cat(layout.parts(page.unsqueeze(0), rows), dim=-1)[0]
    live = (record != 0).any(dim=1)
    said = [f"{rows - int(live.sum())} of {rows} rows are all zero: not written"] if not live.all() else []
    numbers = layout.decode(record).double()
    broken = int((~numbers.isfinite()).sum())
    if broken:
        said.append(f"{broken} values are NaN or infinite: garbage, or another layout")
    for field in layout.tail_fields:
        data = record[live, layout.row_bytes + field.offset :][:, : field.nbytes]
        said += _odd_tail(layout, field, data)
    behind = page[rows * layout.record_bytes : layout.page_bytes(rows)]
    if bool(behind.any()):
        said.append(f"{int((behind != 0).sum())} bytes of the padding are not 0; nobody reads them")
    return said


def _odd_tail(layout: CacheLayout, field: CacheField, data: Tensor) -> Iterator[str]:
    if field.dtype == "zero":
        count, what = int((data != 0).sum()), "pad bytes are not 0"
    elif field.dtype == "ue8m0":
        count, what = (
            int(((data == 0) | (data == 255)).sum()),
            "scale bytes are 0 or 255, which readers disagree on",
        )
        if layout.block == layout.width and bool((data != data[:, :1]).any()):
            yield "the four scale bytes of a row differ; the first one was used"
    else:
        scale = from_bytes(data, torch.float32)
        bad = ~scale.isfinite() | (scale <= 0)
        count, what = int(bad.sum()), "f32 scales are not positive numbers"
        odd = (from_bytes(data, torch.int32) & 0x7FFFFF) != 0
        if layout.rotate == "none" and bool(odd.any()):
            yield f"{int(odd.sum())} f32 scales are no powers of two, as those of {layout.id} are"
    if count:
        yield f"{count} {what}"


def _tail_values(field: CacheField, data: Tensor) -> Tensor:
    """Scales as factors. Shapes: u8 [n] -> f64 [items]."""
    if field.dtype == "f32":
        return from_bytes(data, torch.float32).double()
    return data.double() if field.dtype == "zero" else torch.exp2(data.double() - 127)


def _cut(
    field: CacheField, row: int, start: int, data: Tensor, channel: int, values: Tensor
) -> Iterator[Piece]:
    """A field in lines of a few values."""
    per_byte = values.shape[0] / field.nbytes
    step = LINE_BYTES.get(field.dtype, 8)
    for at in range(0, field.nbytes, step):
        stop = min(at + step, field.nbytes)
        low, high = round(at * per_byte), round(stop * per_byte)
        numbers = tuple(float(v) for v in values[low:high])
        yield Piece(
            start + at, field.name, row, channel + low, channel + high - 1, _bytes(data[at:stop]), numbers
        )


def _bytes(data: Tensor) -> bytes:
    return bytes(int(b) for b in data)
