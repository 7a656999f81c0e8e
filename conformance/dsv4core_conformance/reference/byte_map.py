"""Which field a byte of a page belongs to, in words."""

from __future__ import annotations

from typing import NamedTuple

from .rows import RECORDS, page_bytes


class Field(NamedTuple):
    """A field of every row: row i has its `count` items of `size` bytes at `offset + i * stride`."""

    name: str
    offset: int
    stride: int
    count: int
    size: int


_FRONT = {
    "fp8_ds_mla": (("nope", 448, 1), ("rope", 64, 2)),
    "fp8_ds_mla_fnuz": (("nope", 448, 1), ("rope", 64, 2)),
    "bf16_row": (("value", 512, 2),),
    "fp8_row": (("value", 512, 1),),
    "f32_row": (("value", 512, 4),),
    "index_fp8": (("key", 128, 1),),
    "index_fp8_ue8m0x4": (("key", 128, 1),),
    "index_fp8_hadamard_f32": (("key", 128, 1),),
    "index_mxfp4": (("key", 64, 1),),
    "index_mxfp4_hadamard": (("key", 64, 1),),
    "index_f32": (("key", 128, 4),),
}
_TAIL = {
    "fp8_ds_mla": (("scale", 7, 1), ("scale_pad", 1, 1)),
    "fp8_ds_mla_fnuz": (("scale", 7, 1), ("scale_pad", 1, 1)),
    "index_fp8": (("scale", 1, 4),),
    "index_fp8_hadamard_f32": (("scale", 1, 4),),
    "index_fp8_ue8m0x4": (("scale", 4, 1),),
    "index_mxfp4": (("scale", 4, 1),),
    "index_mxfp4_hadamard": (("scale", 4, 1),),
}


def fields(layout: str, rows: int) -> list[Field]:
    """The fields of a page of `rows` rows, in the order of their bytes. Raises KeyError for no layout."""
    record, found, at = RECORDS[layout], [], 0
    for base, stride, described in (
        (0, record.front, _FRONT[layout]),
        (rows * record.front, record.tail, _TAIL.get(layout, ())),
    ):
        at = base
        for name, count, size in described:
            found.append(Field(name, at, stride, count, size))
            at += count * size
    return found


def field_at(layout: str, rows: int, inside: int) -> str:
    """Words for byte `inside` of a page: its row, field and item, or that it is padding."""
    record = RECORDS[layout]
    behind = rows * (record.front + record.tail)
    if inside >= behind:
        where = "padding" if inside < page_bytes(layout, rows) else "a byte behind the page"
        return f"{where} (the last row ends at byte {behind:,})"
    for field in fields(layout, rows):
        row, byte = divmod(inside - field.offset, field.stride)
        if 0 <= row < rows and byte < field.count * field.size:
            return f"row {row}, field `{field.name}`[{byte // field.size}]"
    raise ValueError(f"{layout}: byte {inside} of a page of {rows} rows has no field")
