"""Rows of cache pages: records as values and back, and where a slot's bytes lie. Twelve layouts.

Pages are u8 [N, B] with any stride between pages; a slot is `page * rows + row`. A page holds the front bytes
of all its rows first, then the tail bytes of all its rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .pages import ALIGNMENT, ENCODERS

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]

MAIN = ("fp8_ds_mla", "fp8_ds_mla_fnuz", "bf16_row", "fp8_row", "f32_row")
INDEX = (
    "index_fp8", "index_fp8_ue8m0x4", "index_mxfp4", "index_mxfp4_hadamard", "index_fp8_hadamard_f32",
    "index_f32",
)  # fmt: skip
ROTATED = ("index_mxfp4_hadamard", "index_fp8_hadamard_f32")
"""Layouts whose values are Hadamard-rotated before they are encoded."""
PLAIN = ("f32_row", "index_f32", "state_f32")
"""Layouts that round nothing (profile `math`, and states)."""


class Record(NamedTuple):
    """Values of a row, its bytes in the front part of a page, and its bytes behind all rows."""

    width: int
    front: int
    tail: int


RECORDS = {
    "fp8_ds_mla": Record(512, 576, 8),
    "fp8_ds_mla_fnuz": Record(512, 576, 8),
    "bf16_row": Record(512, 1024, 0),
    "fp8_row": Record(512, 512, 0),
    "f32_row": Record(512, 2048, 0),
    "index_fp8": Record(128, 128, 4),
    "index_fp8_ue8m0x4": Record(128, 128, 4),
    "index_fp8_hadamard_f32": Record(128, 128, 4),
    "index_mxfp4": Record(128, 64, 4),
    "index_mxfp4_hadamard": Record(128, 64, 4),
    "index_f32": Record(128, 512, 0),
}


def page_bytes(layout: str, rows: int, width: int = 0) -> int:
    """Bytes of a page, rounded up as the layout asks; `width` W is needed for `state_f32` alone."""
    row = 8 * width if layout == "state_f32" else RECORDS[layout].front + RECORDS[layout].tail
    return -(-rows * row // ALIGNMENT[layout]) * ALIGNMENT[layout]


def encode(layout: str, values: NDArray[np.floating]) -> tuple[U8, U8]:
    """Front and tail bytes of rows, from values that are already rotated where the layout wants them so.

    Shapes: [..., width] -> u8 [..., front], u8 [..., tail]
    """
    return ENCODERS[layout](np.asarray(values, dtype=np.float64))


def decode(layout: str, front: U8, tail: U8) -> F64:
    """The exact numbers that records stand for, scales applied.

    Shapes: u8 [..., front], u8 [..., tail] -> f64 [..., width]
    """
    codes, scale = parts(layout, front, tail)
    return codes * scale


def parts(layout: str, front: U8, tail: U8) -> tuple[F64, F64]:
    """Numbers and the scale of each, whose product is the value; the scale of an unscaled channel is 1.

    Shapes: u8 [..., front], u8 [..., tail] -> f64 [..., width], f64 [..., width] or [..., 1]
    """
    one = np.ones((*front.shape[:-1], 1))
    if layout in PLAIN:
        return _view(front, "<f4").astype(np.float64), one
    if layout == "bf16_row":
        return _bf16(front), one
    if layout == "fp8_row":
        return E4M3[front], one
    if layout in ("fp8_ds_mla", "fp8_ds_mla_fnuz"):
        table = FNUZ if layout.endswith("fnuz") else E4M3
        numbers = np.concatenate((table[front[..., :448]], _bf16(front[..., 448:])), axis=-1)
        scale = np.repeat(_power(tail[..., :7]), 64, axis=-1)
        return numbers, np.concatenate((scale, np.ones((*front.shape[:-1], 64))), axis=-1)
    if layout in ("index_fp8", "index_fp8_hadamard_f32"):
        return E4M3[front], _view(tail, "<f4").astype(np.float64)
    if layout == "index_fp8_ue8m0x4":
        return E4M3[front], _power(tail[..., :1])
    nibbles = np.stack((front & 15, front >> 4), axis=-1).reshape(*front.shape[:-1], 128)
    return E2M1[nibbles], np.repeat(_power(tail), 32, axis=-1)


def read(layout: str, pages: U8, slots: I64, rows: int) -> F64:
    """Values of the rows at slots, which must not be negative.

    Shapes: u8 [N, B], [...] -> f64 [..., width]
    """
    return decode(layout, *records(layout, pages, slots, rows))


def records(layout: str, pages: U8, slots: I64, rows: int) -> tuple[U8, U8]:
    """Front and tail bytes of the rows at slots.

    Shapes: u8 [N, B], [...] -> u8 [..., front], u8 [..., tail]
    """
    page, front, tail = places(layout, slots, rows)
    return pages[page[..., None], front], pages[page[..., None], tail]


def write(layout: str, pages: U8, slots: I64, rows: int, values: NDArray[np.floating]) -> None:
    """Encode one row per slot into pages, in place; a negative slot skips its row.

    Shapes: u8 [N, B] (written), i64 [n], [n, width]
    """
    live = np.asarray(slots) >= 0
    page, front, tail = places(layout, np.asarray(slots)[live], rows)
    for i, (one, other) in enumerate(
        zip(*encode(layout, values[live]), strict=True)
    ):  # in order: the last one stays
        pages[page[i], front[i]] = one
        pages[page[i], tail[i]] = other


def places(layout: str, slots: I64, rows: int) -> tuple[I64, I64, I64]:
    """The page of each slot, and the bytes of its front and its tail inside that page.

    Shapes: [...] -> i64 [...], i64 [..., front], i64 [..., tail]
    """
    record = RECORDS[layout]
    page, row = np.divmod(np.asarray(slots, dtype=np.int64), rows)
    front = row[..., None] * record.front + np.arange(record.front)
    tail = rows * record.front + row[..., None] * record.tail + np.arange(record.tail)
    return page, front, tail


def table_slots(table: NDArray[np.int32], request: I64, index: I64, rows: int) -> I64:
    """Slots of row `index` of each request; -1 where the table has no page for it.

    Shapes: table [R, W], broadcastable -> i64
    """
    request, index = np.broadcast_arrays(
        np.asarray(request, dtype=np.int64), np.asarray(index, dtype=np.int64)
    )
    column = index // rows
    inside = (index >= 0) & (column < table.shape[1])
    if not table.size:
        return np.full(index.shape, -1, dtype=np.int64)
    page = table[request, np.clip(column, 0, table.shape[1] - 1)].astype(np.int64)
    return np.where(inside & (page >= 0), page * rows + index % rows, -1)


def _e4m3_table() -> F64:
    codes = np.arange(128)
    field, fraction = codes >> 3, (codes & 7).astype(np.float64)
    magnitude = np.where(field == 0, np.ldexp(fraction, -9), np.ldexp(8 + fraction, field - 10))
    magnitude[127] = np.nan
    return np.concatenate((magnitude, -magnitude))


E4M3 = _e4m3_table()
"""Values of the 256 OCP e4m3 codes."""
FNUZ = E4M3 / 2
"""Values of the 256 FNUZ codes: half of OCP's, except +-240 and the only NaN."""
FNUZ[0x7F], FNUZ[0xFF], FNUZ[0x80] = 240.0, -240.0, np.nan
_MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
E2M1 = np.concatenate((_MAGNITUDES, -_MAGNITUDES))
"""Values of the 16 e2m1 codes."""


def _power(byte: U8) -> F64:
    """2^(byte - 127); 0 and 255 are never written and read as 1 and 254."""
    return np.ldexp(1.0, np.clip(byte.astype(np.int32), 1, 254) - 127)


def _view(data: U8, dtype: str) -> NDArray[np.generic]:
    return np.ascontiguousarray(data).view(dtype)


def _bf16(data: U8) -> F64:
    words = _view(data, "<u2").astype("<u4") << np.uint32(16)
    return words.view("<f4").astype(np.float64)
