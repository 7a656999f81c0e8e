"""Whole pages of every layout: plain values, magnitudes from 2^-30 to 2^33, and corners of the formats."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dsv4core_conformance.inputs.numbers import corner_rows
from dsv4core_conformance.reference.counter import hashed_values, hashed_words

# layout, rows per page, values per row
CASES = (
    ("fp8_ds_mla", 64, 512),
    ("fp8_ds_mla", 2, 512),
    ("fp8_ds_mla_fnuz", 12, 512),
    ("fp8_row", 12, 512),
    ("bf16_row", 12, 512),
    ("bf16_row", 2, 512),
    ("f32_row", 2, 512),
    ("index_fp8", 64, 128),
    ("index_fp8_ue8m0x4", 64, 128),
    ("index_fp8_hadamard_f32", 64, 128),
    ("index_mxfp4", 64, 128),
    ("index_mxfp4_hadamard", 64, 128),
    ("index_f32", 12, 128),
    ("state_f32", 4, 512),
    ("state_f32", 8, 256),
)


def name(layout: str, rows: int, width: int) -> str:
    """Name of a set of pages, and of its file."""
    return f"{layout}_{rows}x{width}"


def inputs(rows: int, width: int) -> NDArray[np.float32]:
    """Three pages of values: plain, spread over magnitudes, and corners.

    Shapes: -> f32 [3, rows, width]
    """
    plain = hashed_values((rows, width), stream=rows * width)
    powers = (hashed_words(rows * width // 32, stream=7) % np.uint64(64)).astype(np.int32) - 30
    spread = np.ldexp(plain, np.repeat(powers, 32).reshape(rows, width)).astype(np.float32)
    return np.stack([plain, spread, corner_rows(plain)])
