"""Rotary embedding: interleaved pairs of the last channels, float32 tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .options import Yarn

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]
Positions = NDArray[np.int64] | Sequence[int]


def inverse_frequencies(theta: float, yarn: Yarn | None, dim: int = 64) -> F32:
    """Frequency of each channel pair, float32, with the YaRN blend when there is one.

    Shapes: -> f32 [dim / 2]
    """
    exponent = np.arange(0, dim, 2, dtype=np.float64) / dim
    power = np.power(theta, exponent).astype(np.float32)  # the only step whose rounding double must hide
    one = np.float32(1.0)
    plain = one / power
    if yarn is None:
        return plain

    def boundary(rotations: float) -> float:
        return dim * math.log(yarn.original_positions / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(boundary(yarn.beta_fast)), 0)
    high = min(math.ceil(boundary(yarn.beta_slow)), dim - 1)
    steps = np.arange(dim // 2, dtype=np.float32)
    ramp = np.clip((steps - np.float32(low)) / np.float32(high - low), 0, 1).astype(np.float32)
    mask = one - ramp
    stretched = one / (np.float32(yarn.factor) * power)
    return stretched * (one - mask) + plain * mask


def cos_sin(positions: Positions, inv_freq: F32) -> tuple[F64, F64]:
    """Cosines and sines of the float32 product position * frequency, each rounded to float32.

    The angle is formed in float32 because the model was trained with that rounding: at position 10^6 a
    float64 angle moves the cosine by 1.5e-2.

    Shapes: positions [n] -> ([n, dim / 2], [n, dim / 2])
    """
    angle = (np.asarray(positions, dtype=np.float32)[:, None] * inv_freq[None, :]).astype(np.float64)
    return (
        np.cos(angle).astype(np.float32).astype(np.float64),
        np.sin(angle).astype(np.float32).astype(np.float64),
    )


def rotate(x: F64, positions: Positions, inv_freq: F32, *, inverse: bool = False) -> F64:
    """Rotate the last `2 * len(inv_freq)` channels of x; the others are passed through.

    Shapes: x [n, ..., d], positions [n] -> [n, ..., d]
    """
    dim = 2 * len(inv_freq)
    cos, sin = cos_sin(positions, inv_freq)
    shape = (len(cos),) + (1,) * (x.ndim - 2) + (dim // 2,)
    cos, sin = cos.reshape(shape), sin.reshape(shape)
    if inverse:
        sin = -sin
    out = x.copy()
    even, odd = x[..., -dim::2], x[..., -dim + 1 :: 2]
    out[..., -dim::2] = even * cos - odd * sin
    out[..., -dim + 1 :: 2] = even * sin + odd * cos
    return out
