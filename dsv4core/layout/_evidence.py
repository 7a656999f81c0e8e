"""What speaks for a layout in the bytes of records, in bits: log2 of its chance over that in random bytes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dsv4core.layout.base import CacheLayout
from dsv4core.layout.geometry import CacheField
from dsv4core.layout.rounding import from_bytes, in_blocks
from dsv4core.numerics import e2m1

SURE = 1 - 1e-9
LARGEST_SCALE = 160  # amax about 2^42: far beyond any activation
LOWEST_SCALE = {"e4m3fn": 105, "e4m3fnuz": 106, "e2m1x2": 95}
FLOOR_SCALE = {"e4m3fn": 105, "e4m3fnuz": 106, "e2m1x2": 1}
NORMAL_EXPONENTS = (103, 143)  # 2^-24 to 2^16


class Fact(NamedTuple):
    """One observation: what was looked at, how often it held, and its weight."""

    what: str
    held: int
    of: int
    bits: float

    def __str__(self) -> str:
        share = "all" if self.held == self.of else f"{self.held} of"
        return f"{share} {self.of} {self.what}"


def fact(what: str, held: Tensor, by_chance: float, expected: float) -> Fact:
    """Weigh observations. Shapes: bool any."""
    n, k = held.numel(), int(held.sum())
    gain, loss = math.log2(expected / by_chance), math.log2((1 - expected) / (1 - by_chance))
    return Fact(what, k, n, k * gain + (n - k) * loss)


def facts(layout: CacheLayout, record: Tensor) -> list[Fact]:
    """Everything that can be said about rows that are not all zero. Shapes: u8 [n, record_bytes]."""
    found: list[Fact] = []
    places = [(f, f.offset) for f in layout.row_fields]
    places += [(f, layout.row_bytes + f.offset) for f in layout.tail_fields]
    bytes_of = {f.name: record[:, at : at + f.nbytes] for f, at in places}
    for field, _ in places:
        data = bytes_of[field.name]
        if field.dtype == "zero":
            found.append(fact("pad bytes are 0", data == 0, 1 / 256, 0.9999))
        elif field.dtype == "ue8m0":
            found += _bytes(layout, data)
        elif field.name == "scale":
            found += _scales(layout, record, data)
        else:
            found += _FIELDS[field.dtype](field, data, bytes_of.get("scale"), layout)
    return found


def _codes(field: CacheField, data: Tensor, tail: Tensor | None, layout: CacheLayout) -> list[Fact]:
    magnitude = data & 0x7F
    if field.dtype == "e4m3fnuz":
        found = [
            fact("codes are not 0x80, NaN in FNUZ", data != 0x80, 255 / 256, SURE),
            fact("codes are not +-240, which no writer makes", magnitude != 0x7F, 126 / 128, SURE),
        ]
    else:
        found = [
            fact("codes are not 0x7f or 0xff, NaN in e4m3fn", magnitude != 0x7F, 126 / 128, SURE),
            fact("codes are not -0, which is rare", data != 0x80, 255 / 256, 1 - 1e-6),
        ]
    if tail is None or layout.block is None:
        inside = (magnitude >= 0x10) & (magnitude <= 0x60)
        return [*found, fact("codes between 2^-5 and 2^5, as unscaled values are", inside, 0.64, 0.97)]
    found.append(
        fact("codes use the upper half of the range, as scaled ones do", magnitude >= 0x50, 0.367, 0.93)
    )
    top = in_blocks(magnitude, layout.block).amax(dim=-1)
    if layout.rotate == "none":
        full = (top >= 0x76) | _at_floor(layout, field, tail, top)
        found.append(fact("blocks fill their scale (largest code above 224 of 448)", full, 0.9, 0.999))
    return found


def _at_floor(layout: CacheLayout, field: CacheField, tail: Tensor, top: Tensor) -> Tensor:
    """Blocks whose scale is the smallest there is: they need not fill it."""
    if any(f.name == "scale" and f.dtype == "ue8m0" for f in (*layout.row_fields, *layout.tail_fields)):
        return tail[:, : top.shape[1]] == FLOOR_SCALE[field.dtype]
    return (from_bytes(tail, torch.int32) >> 23) == FLOOR_SCALE[field.dtype]


def _nibbles(field: CacheField, data: Tensor, tail: Tensor | None, layout: CacheLayout) -> list[Fact]:
    top = in_blocks(e2m1.unpack(data) & 7, layout.block or 32).amax(dim=-1)
    full = (top >= 5) | (top == 0)
    return [fact("blocks fill their scale (largest code 3, 4 or 6)", full, 0.99, 0.999)]


def _words(field: CacheField, data: Tensor, tail: Tensor | None, layout: CacheLayout) -> list[Fact]:
    exponent = (from_bytes(data, torch.int16).int() >> 7) & 0xFF
    return _exponents(field, exponent, "bf16")


def _floats(field: CacheField, data: Tensor, tail: Tensor | None, layout: CacheLayout) -> list[Fact]:
    exponent = (from_bytes(data, torch.int32) >> 23) & 0xFF
    return _exponents(field, exponent, "f32")


def _exponents(field: CacheField, exponent: Tensor, kind: str) -> list[Fact]:
    low, high = NORMAL_EXPONENTS
    inside = (exponent >= low) & (exponent <= high)
    return [
        fact(f"{kind} values of {field.name!r} are finite", exponent != 255, 255 / 256, SURE),
        fact(f"{kind} values of {field.name!r} between 2^{low - 127} and 2^{high - 127}", inside, 0.16, 0.97),
    ]


def _bytes(layout: CacheLayout, data: Tensor) -> list[Fact]:
    dtype = layout.row_fields[0].dtype
    low, floor = LOWEST_SCALE[dtype], FLOOR_SCALE[dtype]
    inside = ((data >= low) & (data <= LARGEST_SCALE)) | (data == floor)
    share = (LARGEST_SCALE - min(low, 105) + 2) / 256
    found = [fact(f"scale bytes between {low} and {LARGEST_SCALE}", inside, share, 0.9999)]
    if layout.block == layout.width:
        same = (data == data[:, :1]).all(dim=1)
        found.append(fact("scales are four equal bytes", same, 2.0**-24, 0.9999))
    return found


def _scales(layout: CacheLayout, record: Tensor, data: Tensor) -> list[Fact]:
    bits = from_bytes(data, torch.int32)
    exponent, power = bits >> 23, (bits & 0x7FFFFF) == 0
    inside = (exponent >= 104) & (exponent <= LARGEST_SCALE)  # the sign makes it negative
    found = [fact("f32 scales are positive and plausible", inside, 0.11, 0.9999)]
    if layout.rotate == "none":
        return [*found, fact("f32 scales are powers of two", power, 2.0**-23, 0.9999)]
    top = (record[:, : layout.row_bytes] & 0x7F).amax(dim=-1)
    at_floor = from_bytes(data, torch.float32).squeeze(-1) <= 2.24e-7
    return [
        *found,
        fact("f32 scales are no powers of two", ~power | at_floor.unsqueeze(-1), 1 - 2.0**-23, 0.98),
        fact("rows reach 448 exactly, as with scale amax/448", (top == 0x7E) | at_floor, 0.4, 0.999),
    ]


_Check = Callable[[CacheField, Tensor, "Tensor | None", CacheLayout], list[Fact]]
_FIELDS: dict[str, _Check] = {
    "e4m3fn": _codes,
    "e4m3fnuz": _codes,
    "e2m1x2": _nibbles,
    "bf16": _words,
    "f32": _floats,
}
