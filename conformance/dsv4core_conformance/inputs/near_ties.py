"""Numbers whose rounding hangs on the last bit of a float32: an approximate operation before it shows.

A bf16 or an 8-bit code hides one unit in the last place of a float32 in all but one value of ten thousand.
Here every value is put next to the middle between two codes: the unit decides which of them is stored.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dsv4core_conformance.inputs.numbers import Numbers

F32 = NDArray[np.float32]
Grid = Literal["bf16", "e4m3", "e2m1", "e4m3_direct"]
"""What a float32 is rounded to; the 8- and 4-bit codes through bf16, as in every cache, or directly."""

E2M1_MIDDLES = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
LARGEST = {"bf16": 448.0, "e4m3": 448.0, "e4m3_direct": 448.0, "e2m1": 6.0}
"""A magnitude that makes the scale of its block exactly 1."""


def near_ties(source: Numbers, grid: Grid, *shape: int, powers: int = 1) -> F32:
    """Positive numbers at which the rounding to `grid` steps, times 2^0 .. 2^(powers - 1).

    On the way through bf16 they are middles of bf16 beside a middle of the codes, on the side on which one
    unit more or less moves both roundings. Shapes: -> f32 [shape]
    """
    count = int(np.prod(shape))
    if grid == "bf16":
        found = (128.5 + source.integers(count, 0, 128)) / 128
    else:
        step = source.integers(count, 0, 7 if grid == "e2m1" else 8)
        found = E2M1_MIDDLES[step] if grid == "e2m1" else (8.5 + step) / 8
        if grid != "e4m3_direct":
            unit = np.ldexp(1.0, np.floor(np.log2(found)).astype(np.int64) - 8)  # half a bf16 step
            found = found + np.where(step % 2 == 0, unit, -unit)
    power = source.integers(count, 0, powers) if grid != "e2m1" else 0
    return np.ldexp(found, power).astype(np.float32).reshape(shape)


def turning(source: Numbers, grid: Grid, *shape: int, inverse: bool = False) -> tuple[F32, F32, F32]:
    """Pairs and angles of which one result in two is a near-tie if all products are rounded before the sum.

    A fused product and sum, or one in float64, keeps what the product's rounding dropped and falls beside the
    tie. `inverse`: for turning backwards. Shapes: -> x [*shape, 64], cosines [*shape, 32], sines [*shape, 32]
    """
    half = (*shape, 32)
    ties = near_ties(source, grid, *half).astype(np.float64)
    short = (128 + source.integers(ties.size, 0, 64).reshape(half)) / 128  # bf16 numbers in [1, 1.5)
    long = (4.1 / short * (1 + source.integers(ties.size, 0, 1 << 20).reshape(half) / (1 << 23))).astype(
        np.float32
    )
    product = (short.astype(np.float32) * long).astype(np.float64)  # rounded, in [4.1, 4.7]
    kind = np.arange(32) % 4
    plus, minus = (product + ties).astype(np.float32), (product - ties).astype(np.float32)  # both exact
    one = np.ones(half)
    # e c - o s = tie in the first two kinds, e s + o c = tie in the others, the long product being each one.
    even = np.choose(kind, (one, short, short, -one)).astype(np.float32)
    odd = np.choose(kind, (short, one, -one, short)).astype(np.float32)
    cos = np.choose(kind, (plus, long, minus, long)).astype(np.float32)
    sin = np.choose(kind, (long, minus, long, minus)).astype(np.float32)
    x = np.stack((even, odd), axis=-1).reshape(*shape, 64)
    return x, cos, -sin if inverse else sin
