"""The canonical arithmetic in float32, one rounding per operation: what every cache byte depends on.

Everything here works on whole arrays of float32; bf16 values travel as the float32 of the same value. Number
formats themselves are in `quant`, rounded once from float64, which every float32 is exactly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .quant import FLOOR_CACHE, e4m3_codes, exponent_e4m3, to_bf16

F32 = NDArray[np.float32]
Codes = NDArray[np.uint8]
I64 = NDArray[np.int64]

_ONE = np.float32(1)
_EXP_LOWEST = np.float32(-87)
_LOG2_E = np.float32(1.44269504)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_EXP_TERMS = tuple(
    np.float32(c)
    for c in (
        1.9875691500e-4,
        1.3981999507e-3,
        8.3334519073e-3,
        4.1665795894e-2,
        1.6666665459e-1,
        5.0000001201e-1,
    )
)
SEGMENTS = 8
ROPE = 64


def bf16(x: ArrayLike) -> F32:
    """The nearest bf16 values, ties to even, as float32.

    Shapes: any -> f32 the same
    """
    return to_bf16(np.asarray(x, dtype=np.float64)).astype(np.float32)


def rounded(x: F32, dtype: str) -> F32:
    """bf16 where an activation is "bf16", untouched where it is "f32" (profile `math`).

    Shapes: any -> f32 the same
    """
    return bf16(x) if dtype == "bf16" else x.astype(np.float32)


def inverse_rms(y: F32, eps: float) -> F32:
    """1 / sqrt(mean(y^2) + eps): squares of integers are summed, so that no order of summation shows.

    Shapes: f32 [..., n] -> f32 [..., 1]
    """
    if y.size == 0:
        return np.ones((*y.shape[:-1], 1), dtype=np.float32)
    field = np.abs(y).max(axis=-1, keepdims=True).view(np.uint32).astype(np.int64) >> 23
    k = 20 - (np.maximum(field, 30) - 127)
    whole = np.rint(np.ldexp(y.astype(np.float64), k)).astype(np.int64)
    total = (whole * whole).sum(axis=-1, keepdims=True).astype(np.float32)
    back = np.ldexp(_ONE, -k).astype(np.float32)
    with np.errstate(over="ignore", under="ignore"):
        mean = total * back * back / np.float32(y.shape[-1])
        return _ONE / np.sqrt(mean + np.float32(eps))


def rms_norm(y: F32, weight: F32 | None, eps: float) -> F32:
    """(y * inverse_rms) * weight: two roundings, one without a weight.

    Shapes: f32 [..., n], weight [n] -> f32 [..., n]
    """
    normed = y * inverse_rms(y, eps)
    return normed if weight is None else normed * weight.astype(np.float32)


def rope(x: F32, cos_sin: F32, *, inverse: bool = False) -> F32:
    """Interleaved pairs of the last 64 channels turned; four products and two sums, each rounded.

    Shapes: x f32 [..., d], cos_sin f32 [..., 64] (cosines, then sines; broadcast) -> f32 [..., d]
    """
    cos, sin = cos_sin[..., : ROPE // 2], cos_sin[..., ROPE // 2 :]
    sin = -sin if inverse else sin
    out = x.astype(np.float32, copy=True)
    even, odd = x[..., -ROPE::2], x[..., -ROPE + 1 :: 2]
    out[..., -ROPE::2] = even * cos - odd * sin
    out[..., -ROPE + 1 :: 2] = even * sin + odd * cos
    return out


def exp(x: F32) -> F32:
    """exp of numbers <= 0 by the Cephes polynomial; below -87 exactly 0.

    Shapes: f32 any -> f32 the same
    """
    z = np.maximum(x, _EXP_LOWEST)
    k = np.floor(z * _LOG2_E + np.float32(0.5))
    t = z - k * _LN2_HIGH
    t = t - k * _LN2_LOW
    p = np.full_like(t, _EXP_TERMS[0])
    for term in _EXP_TERMS[1:]:
        p = p * t + term
    y = p * (t * t)
    y = y + t
    y = y + _ONE
    return np.where(x < _EXP_LOWEST, np.float32(0), np.ldexp(y, k.astype(np.int32))).astype(np.float32)


def pool(kv: F32, score: F32, valid: NDArray[np.bool_]) -> F32:
    """Compressed entries: softmax over the rows of a window per channel, in eight segments of rows.

    Shapes: kv, score f32 [n, w, d], valid bool [n, w] -> f32 [n, d]
    """
    count, window, width = kv.shape
    mask = valid[..., None]
    peak = np.where(mask, score, -np.inf).max(axis=1, initial=-np.inf).astype(np.float32)
    weight = exp(np.where(mask, score - peak[:, None], np.float32(-100)).astype(np.float32))
    mass = np.zeros((SEGMENTS, count, width), dtype=np.float32)
    product = np.zeros((SEGMENTS, count, width), dtype=np.float32)
    for j in range(window):
        at, here = j // (window // SEGMENTS), mask[:, j]
        mass[at] = np.where(here, mass[at] + weight[:, j], mass[at])
        product[at] = np.where(here, product[at] + weight[:, j] * np.where(here, kv[:, j], 0), product[at])
    top, bottom = product[0], mass[0]
    for at in range(1, SEGMENTS):
        top, bottom = top + product[at], bottom + mass[at]
    return top / bottom


def hadamard(x: F32) -> F32:
    """Hadamard-128 of bf16 values by butterflies of ascending stride, one scaling, rounded to bf16.

    Shapes: f32 [..., 128] -> f32 [..., 128]
    """
    y = x.astype(np.float32)
    stride = 1
    while stride < 128:
        pairs = y.reshape(*x.shape[:-1], 128 // (2 * stride), 2, stride)
        low, high = pairs[..., 0, :], pairs[..., 1, :]
        y = np.stack((low + high, low - high), axis=-2).reshape(x.shape)
        stride *= 2
    return bf16(y * np.float32(128**-0.5))


def blocks_e4m3(x: F32, size: int, floor: float = FLOOR_CACHE) -> tuple[Codes, I64]:
    """e4m3 codes with one power-of-two scale 2^E per block of `size` channels, and the exponents E.

    Shapes: f32 [..., n] -> u8 [..., n], i64 [..., n / size]
    """
    blocks = x.reshape(*x.shape[:-1], x.shape[-1] // size, size)
    exponent = exponent_e4m3(np.abs(blocks).max(axis=-1), floor_f32(floor))
    codes = e4m3_codes(np.ldexp(blocks.astype(np.float64), -exponent[..., None]))
    return codes.reshape(x.shape), exponent


def floor_f32(floor: float) -> float:
    """A floor as the float32 that is compared with."""
    return float(np.float32(floor))
