"""Flagged rows: one call of the window writer per main layout, every row made to show one kind of mistake."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsv4core_conformance.inputs.numbers import Numbers
from dsv4core_conformance.reference import rows as reference
from dsv4core_conformance.reference.ca1 import bf16, rope

F32 = NDArray[np.float32]
LAYOUTS = ("fp8_ds_mla", "fp8_ds_mla_fnuz", "fp8_row", "bf16_row")
ROWS, PAGES = 8, 3
POISON = 0xA5
MAGNITUDES = reference.E4M3[:127]
"""The magnitudes of e4m3: 0, 2^-9, ... 448."""


class Row(NamedTuple):
    """A key row before RoPE, the table row it turns by, its slot and what it is about."""

    flags: tuple[str, ...]
    comment: str
    values: F32
    table: F32
    slot: int


def _still() -> F32:
    """The table row of position 0: nothing turns. Shapes: -> f32 [64]"""
    return np.concatenate((np.ones(32), np.zeros(32))).astype(np.float32)


def _turned(values: F32) -> tuple[F32, F32]:
    """Ones in even channels and a table row of cosines `values`, which become the even rotated channels.

    Shapes: [32] -> f32 [64], f32 [64]
    """
    return np.tile(np.float32([1, 0]), 32), np.concatenate((values, np.zeros(32))).astype(np.float32)


def _neighbours(middles: NDArray[np.floating], dtype: str) -> F32:
    """Numbers one step below, at and one step above each of the given ones. Shapes: [n] -> f32 [3 n]"""
    step = np.uint32(1 << 16 if dtype == "bf16" else 1)
    bits = middles.astype(np.float32).view(np.uint32)
    return np.stack((bits - step, bits, bits + step), axis=1).reshape(-1).view(np.float32)


def flagged_rows() -> list[Row]:
    """The rows of the set, in order; slots fill three pages of eight rows but for a few."""
    source, still = Numbers(77), _still()
    middles = (MAGNITUDES[:-1] + MAGNITUDES[1:])[1:] / 2
    described: list[tuple[tuple[str, ...], str, F32, F32]] = []

    def add(flags: str, comment: str, values: NDArray[np.floating], table: F32 = still) -> None:
        described.append((tuple(flags.split()), comment, bf16(np.resize(values, 512)), table))

    plain = source.normal(512)
    add("ScaleUnderflow NegativeZero", "zeros of both signs", np.float32([0.0, -0.0, -0.0]))
    add("ScaleUnderflow", "magnitudes around 1e-5 and 1e-4", np.float32([1e-5, -9e-5, 3e-6, 1e-4, -2e-7]))
    add("ScaleUnderflow NegativeZero", "bf16 subnormals", np.float32([1e-40, -(2.0**-133), 2.0**-127]))
    add("ScaleExponentZero", "448 in every block", np.float32([448, 1, -3.5, 100]))
    add("ScaleStep", "450 in every block", np.float32([450, 1, -3.5, 100]))
    steps = np.repeat(np.float32([448, 450, 446, 7, 7.03125, 6.96875, 2.0**-20 * 448, 0]), 64)
    add("ScaleStep", "at, above and below a step, one block each", steps * np.tile(np.float32([1, 0.5]), 256))
    largest = np.float32(3.3895313892515355e38)
    add("ScaleLargest SaturatesAt448", "the largest bf16", np.float32([largest, -largest, 1e30, 2.0**100]))
    add("SaturatesAt448", "449 to 1e5", np.float32([448, 449, 464, 480, -500, 1e5, -1e5, 240]))
    add("FnuzMax", "224 in every block", np.float32([224, 112, -224, 17]))
    add("FnuzMax ScaleStep", "225 to 240", np.float32([225, 240, -232, 17]))
    add(
        "NegativeZero Subnormal",
        "values that round to zero under 448",
        np.float32([448, -(2.0**-11), -(2.0**-12)]),
    )
    subnormal = np.arange(-17, 18) * 2.0**-10
    add("Subnormal CodeTie", "multiples of half a subnormal step under 448", np.append(subnormal, 448.0))
    near = np.resize(_neighbours(middles, "bf16"), (7, 63))
    # A largest magnitude of 448 per block keeps the scale at 1 in OCP and the middles where they are.
    near = np.append(np.concatenate((near, np.full((7, 1), 448, np.float32)), axis=1).reshape(-1), plain[:64])
    add("CodeTie", "every middle of codes and its neighbours", near)
    add("CodeTie NegativeZero", "the same, negative", -near)
    fine = _neighbours(middles[20:30], "f32")
    head, table = _turned(np.append(fine, np.float32([448, 448])))
    add(
        "DoubleRounding",
        "rotated float32 next to middles of codes",
        np.append(np.resize(plain, 448), head),
        table,
    )
    ties = np.float32([1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8, 2.0**-130 * (1 + 2.0**-2), 255.5])
    head, table = _turned(np.resize(ties, 32))
    add("RopeTie", "rotated values between two bf16", np.append(np.resize(plain, 448), head), table)
    quarter = np.concatenate((np.zeros(32), np.ones(32))).astype(np.float32)
    add("PairLayout", "a quarter turn of every pair", np.append(np.zeros(448), np.arange(1, 65)), quarter)
    add("SlotMinusOne", "a row to be skipped", np.float32([77, -88]))
    add("PageBoundary", "ordinary values, last row of a page", plain)
    add("PageBoundary", "ordinary values, first row of a page", -plain)
    order = iter([2, 5, 0, 9, 3, 14, 11, 6, 1, 12, 4, 10, 13, 18, 22, 17, 20, 19])
    slots = [
        {"SlotMinusOne": -1}.get(flags[0], 0 if "PageBoundary" in flags else next(order))
        for flags, *_ in described
    ]
    slots[-2:] = [7, 8]
    return [Row(*row[:4], slot) for row, slot in zip(described, slots, strict=True)]


def arguments(rows: list[Row]) -> dict[str, Any]:
    """The call's arrays: kv [n, 512], positions [n], cos_sin [n, 64], slot_mapping [n]."""
    return {
        "kv": np.stack([row.values for row in rows]),
        "positions": np.arange(len(rows)),
        "cos_sin": np.stack([row.table for row in rows]),
        "slot_mapping": np.array([row.slot for row in rows]),
    }


def expected(layout: str, rows: list[Row]) -> NDArray[np.uint8]:
    """The canvas afterwards. Shapes: -> u8 [3, page bytes]"""
    canvas = np.full((PAGES, reference.page_bytes(layout, ROWS)), POISON, dtype=np.uint8)
    a = arguments(rows)
    reference.write(layout, canvas, a["slot_mapping"], ROWS, rope(a["kv"], a["cos_sin"]))
    return canvas
