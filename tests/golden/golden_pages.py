"""The fixed page set: inputs from an integer hash, encoded by the numpy encoder, named and hashed.

Run as a script it prints the JSON that `golden_pages.json` pins.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsv4core_conformance.reference.counter import hashed_values, hashed_words
from dsv4core_conformance.reference.pages import encode_pages

PINNED = Path(__file__).with_name("golden_pages.json")

# layout, rows per page, values per row
CASES = [
    ("fp8_ds_mla", 64, 512),
    ("fp8_ds_mla", 2, 512),
    ("fp8_ds_mla_fnuz", 64, 512),
    ("fp8_row", 64, 512),
    ("bf16_row", 64, 512),
    ("bf16_row", 2, 512),
    ("f32_row", 64, 512),
    ("f32_row", 2, 512),
    ("index_fp8", 64, 128),
    ("index_fp8_ue8m0x4", 64, 128),
    ("index_fp8_hadamard_f32", 64, 128),
    ("index_mxfp4", 64, 128),
    ("index_mxfp4_hadamard", 64, 128),
    ("index_f32", 64, 128),
    ("state_f32", 4, 2048),
    ("state_f32", 4, 512),
    ("state_f32", 8, 1024),
]
PAGES = 3


def name(layout: str, rows: int, width: int) -> str:
    return f"{layout}/{rows}x{width}"


def inputs(rows: int, width: int) -> NDArray[np.float32]:
    """Pages of plain values, of block magnitudes 2^-30..2^33, and of the corners of the formats.

    Shapes: -> f32 [3, rows, width]
    """
    plain = hashed_values((rows, width), stream=rows * width)
    powers = (hashed_words(rows * width // 32, stream=7) % np.uint64(64)).astype(np.int32) - 30
    spread = np.ldexp(plain, np.repeat(powers, 32).reshape(rows, width)).astype(np.float32)
    corners = plain.copy()
    specials = np.array(
        [
            0.0,
            -0.0,
            448.0,
            449.0,
            6.0,
            6.03125,
            2.0**-9,
            2.0**-10,
            3 * 2.0**-11,
            -(2.0**-10),
            1e-4,
            1.0 + 2.0**-8,
            1.0 + 3 * 2.0**-8,
            1e-40,
            2.0**100,
            -(2.0**-133),
        ],
        dtype=np.float32,
    )
    for row in range(rows):
        kind = row % 6
        if kind == 0:
            corners[row] = np.where(np.arange(width) % 3 == 0, np.float32(-0.0), np.float32(0.0))
        elif kind == 1:
            corners[row, ::32] = np.resize(specials, width // 32)
        elif kind == 2:  # block maxima exactly where the exponent steps, values on ties of the grid
            corners[row] = np.resize(
                np.array([448, 0.25, -0.75, 17, -19, 2.5, 232, -248], dtype=np.float32), width
            )
        elif kind == 3:
            corners[row] = np.ldexp(plain[row], -140)
        elif kind == 4:
            corners[row] = np.resize(
                np.array([6, 0.25, -0.25, 0.75, 1.25, -1.75, 2.5, 3.5, -5, 5.03125], dtype=np.float32), width
            )
    return np.stack([plain, spread, corners])


def digests() -> dict[str, str]:
    """sha256 of each case's pages, by the numpy encoder."""
    return {
        name(layout, rows, width): hashlib.sha256(
            encode_pages(layout, inputs(rows, width)).tobytes()
        ).hexdigest()
        for layout, rows, width in CASES
    }


if __name__ == "__main__":
    PINNED.write_text(json.dumps(digests(), indent=2) + "\n")
