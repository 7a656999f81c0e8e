"""What the flags of the vectors mean: the property of an input, and which field bugs it shows."""

from __future__ import annotations

from typing import NamedTuple


class Flag(NamedTuple):
    """`meaning`: what is special about the input and what a wrong writer does; `catches`: catalogue rows."""

    meaning: str
    catches: tuple[str, ...]


FLAGS = {
    "ScaleUnderflow": Flag(
        "The block's largest magnitude is below the floor 1e-4, or 0: its scale byte is 105 (FNUZ: 106). "
        "A floor on the scale instead of on the magnitude gives 114, no floor gives 0.",
        ("B3", "B8"),
    ),
    "ScaleExponentZero": Flag(
        "The largest magnitude is exactly 448 (or 224 in FNUZ): E = 0, byte 127. A logarithm or an "
        "approximate division gives 128.",
        ("B10", "B3"),
    ),
    "ScaleStep": Flag(
        "The largest magnitude is one bf16 step above 448 * 2^k: the exponent is one larger than at 448 * "
        "2^k.",
        ("B10",),
    ),
    "ScaleLargest": Flag(
        "The largest finite bf16: byte 247 (FNUZ: 248), every smaller value of the block still in its place.",
        ("B8",),
    ),
    "SaturatesAt448": Flag(
        "Values above 448 in a row without scales of its own: the code of 448, neither NaN (0x7f) nor 240.",
        ("B1", "B8"),
    ),
    "FnuzMax": Flag(
        "Values between 224 and 240: FNUZ could hold them, but writers saturate at 224 and so the "
        "exponent steps.",
        ("B1", "B2"),
    ),
    "NegativeZero": Flag(
        "-0, and negative values that round to it: 0x80 in OCP; 0x00 in FNUZ, where 0x80 is NaN.",
        ("B1", "B8"),
    ),
    "Subnormal": Flag(
        "Scaled values below 2^-6, where codes are equally spaced: a writer that flushes them gives 0.",
        ("B8", "B9"),
    ),
    "CodeTie": Flag(
        "Every middle between two e4m3 codes, and its bf16 neighbours: ties go to the even code. Rounding "
        "half away or adding half a step gives the odd one.",
        ("B4", "B7"),
    ),
    "DoubleRounding": Flag(
        "Rotated float32 values next to a middle between codes: rounding to bf16 or fp16 first lands on "
        "the middle. Rows that are rounded to bf16 on purpose do so.",
        ("B4",),
    ),
    "RopeTie": Flag(
        "Rotated values exactly between two bf16 numbers: ties to even. A fused multiply-add or "
        "truncation shows.",
        ("B5", "B7"),
    ),
    "PairLayout": Flag(
        "A quarter turn of one pair: channel 448 + 2i turns with 449 + 2i, not with 448 + 32 + i.",
        ("F9",),
    ),
    "PageBoundary": Flag(
        "The last row of a page and the first of the next: 576-byte rows first, scales behind all of them.",
        ("A1", "A2", "A6"),
    ),
    "SlotMinusOne": Flag(
        "A token with a negative slot is skipped: writing it to row 0 or to the last row shows.",
        ("A6",),
    ),
    "PadNotZeroed": Flag(
        "The canvas is 0xA5: the eighth scale byte of a written row becomes 0, all bytes that belong to "
        "no written row stay 0xA5.",
        ("A5", "A6", "A9"),
    ),
}
