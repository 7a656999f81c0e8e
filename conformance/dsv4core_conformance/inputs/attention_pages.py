"""Filled pages for attention and for the indexer; drawn once per process and copied."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dsv4core_conformance.inputs.hashed import Draws
from dsv4core_conformance.reference.pages import encode_pages

U8 = NDArray[np.uint8]


@lru_cache(maxsize=64)
def _main(layout: str, rows: int, count: int, seed: int) -> U8:
    rng = Draws(seed, "main", layout, rows, count)
    values = rng.standard_normal((count, rows, 512)) * 2.0 ** rng.integers(-2, 2, (count, rows, 1))
    return encode_pages(layout, values)


def main_pages(layout: str, rows: int, count: int, seed: int = 0) -> U8:
    """Pages of a main layout, every row of its own size. Shapes: -> u8 [count, page bytes]"""
    return _main(layout, rows, count, seed).copy()


@lru_cache(maxsize=32)
def _index(layout: str, rows: int, count: int, kind: str, seed: int) -> U8:
    rng = Draws(seed, "index", layout, rows, count, kind)
    if kind == "dyadic":
        values = rng.integers(-2, 3, (count, rows, 128)).astype(np.float64)
        if layout == "index_fp8_hadamard_f32":
            values[..., 0] = 7.0  # amax / 448 is a power of two then
    else:
        values = rng.standard_normal((count, rows, 128)) * 2.0 ** rng.integers(-4, 5, (count, rows, 1))
    return encode_pages(layout, values)


def index_pages(layout: str, rows: int, count: int, kind: str = "normal", seed: int = 0) -> U8:
    """Pages of an index layout; "dyadic" keys are small whole numbers, so that scores have no rounding.

    Shapes: -> u8 [count, page bytes]
    """
    return _index(layout, rows, count, kind, seed).copy()
