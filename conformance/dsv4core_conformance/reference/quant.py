"""Number formats: bf16, OCP e4m3, e2m1, power-of-two scales and the Hadamard rotation.

Every encoder rounds once, from float64, to nearest with ties to even.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

E4M3_MAX = 448.0
E4M3_FNUZ_MAX = 224.0
E2M1_MAX = 6.0
FLOOR_CACHE = 1e-4
FLOOR_OUTPUT = 1e-10
FLOOR_E2M1 = 6.0 * 2.0**-126


def _round_to_grid(x: F64, bits: int, lowest: int) -> F64:
    """Nearest multiple of 2^(e - bits), where 2^(e-1) <= |x| < 2^e and e is not below `lowest`."""
    exponent = np.maximum(np.frexp(x)[1], lowest) - bits
    return np.ldexp(np.rint(np.ldexp(x, -exponent)), exponent)


def to_bf16(x: F64) -> F64:
    """The nearest bf16 value, subnormals included.

    Shapes: [...] -> [...]
    """
    rounded = _round_to_grid(np.asarray(x, dtype=np.float64), 8, -125)
    return np.where(np.abs(rounded) >= 2.0**128, np.copysign(np.inf, rounded), rounded)


def to_e4m3(x: F64) -> F64:
    """The nearest e4m3fn value after clamping to +-448.

    Shapes: [...] -> [...]
    """
    return _round_to_grid(np.clip(x, -E4M3_MAX, E4M3_MAX), 4, -5)


def e4m3_codes(x: F64) -> U8:
    """Bytes of the nearest e4m3fn values; a zero keeps its sign.

    Shapes: [...] -> u8 [...]
    """
    value = np.abs(to_e4m3(x))
    fraction, exponent = np.frexp(value)
    normal = (exponent + 6) * 8 + (fraction * 16 - 8)
    code = np.where(value < 2.0**-6, value * 512, normal).astype(np.uint8)
    return code | np.where(np.signbit(x), 0x80, 0).astype(np.uint8)


def e4m3_fnuz_codes(x: F64) -> U8:
    """Bytes of the nearest FNUZ values after clamping to +-224: bias 8, no negative zero (0x80 is NaN).

    Shapes: [...] -> u8 [...]
    """
    value = np.abs(_round_to_grid(np.clip(x, -E4M3_FNUZ_MAX, E4M3_FNUZ_MAX), 4, -6))
    fraction, exponent = np.frexp(value)
    normal = (exponent + 7) * 8 + (fraction * 16 - 8)
    code = np.where(value < 2.0**-7, value * 1024, normal).astype(np.uint8)
    return code | np.where(np.signbit(x) & (code > 0), 0x80, 0).astype(np.uint8)


def to_e2m1(x: F64) -> F64:
    """The nearest of 0, .5, 1, 1.5, 2, 3, 4, 6 (with sign), saturating.

    Shapes: [...] -> [...]
    """
    return _round_to_grid(np.clip(x, -E2M1_MAX, E2M1_MAX), 2, 1)


def e2m1_codes(x: F64) -> U8:
    """Codes 0..15 of the nearest e2m1 values, bit 3 being the sign, which a zero keeps.

    Shapes: [...] -> u8 [...]
    """
    grid = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    code = np.searchsorted(grid, np.abs(to_e2m1(x))).astype(np.uint8)
    return code | np.where(np.signbit(x), 8, 0).astype(np.uint8)


def exponent_e4m3(amax: F64, floor: float = FLOOR_CACHE) -> I64:
    """Smallest E with amax <= 448 * 2^E, from the bits of the number (448 = 0.875 * 2^9).

    Shapes: [...] -> i64 [...]
    """
    fraction, exponent = np.frexp(np.maximum(amax, floor))
    return exponent.astype(np.int64) - 9 + (fraction > 0.875)


def exponent_e4m3_fnuz(amax: F64) -> I64:
    """Smallest E with amax <= 224 * 2^E, from the bits of the number (224 = 0.875 * 2^8).

    Shapes: [...] -> i64 [...]
    """
    fraction, exponent = np.frexp(np.maximum(amax, FLOOR_CACHE))
    return exponent.astype(np.int64) - 8 + (fraction > 0.875)


def exponent_e2m1(amax: F64) -> I64:
    """Smallest E with amax <= 6 * 2^E, from the bits of the number (6 = 0.75 * 2^3).

    Shapes: [...] -> i64 [...]
    """
    fraction, exponent = np.frexp(np.maximum(amax, FLOOR_E2M1))
    return exponent.astype(np.int64) - 3 + (fraction > 0.75)


def _block_amax(x: F64, block: int) -> tuple[F64, F64]:
    grouped = x.reshape(*x.shape[:-1], x.shape[-1] // block, block)
    return grouped, np.abs(grouped).max(axis=-1, keepdims=True)


def through_e4m3(x: F64, block: int, floor: float = FLOOR_CACHE) -> F64:
    """x after e4m3 with one power-of-two scale per block of channels.

    Shapes: [..., d] -> [..., d]
    """
    grouped, amax = _block_amax(x, block)
    exponent = exponent_e4m3(amax, floor)
    return np.ldexp(to_e4m3(np.ldexp(grouped, -exponent)), exponent).reshape(x.shape)


def plain_scale(amax: F64) -> F64:
    """float32 amax / 448 with the floor on amax, as an engine divides: from float32 numbers, rounded once.

    Shapes: [...] -> [...]
    """
    floored = np.maximum(amax.astype(np.float32), np.float32(FLOOR_CACHE))
    return (floored / np.float32(E4M3_MAX)).astype(np.float64)


def plain_quotient(x: F64, scale: F64) -> F64:
    """x / scale rounded to float32, the number that e4m3 then rounds.

    Shapes: [...], broadcastable -> [...]
    """
    return (x / scale).astype(np.float32).astype(np.float64)


def through_e4m3_plain_scale(x: F64, block: int) -> F64:
    """x after e4m3 with one float32 scale amax / 448 per block of channels.

    Shapes: [..., d] -> [..., d]
    """
    grouped, amax = _block_amax(x, block)
    scale = plain_scale(amax)
    return (to_e4m3(plain_quotient(grouped, scale)) * scale).reshape(x.shape)


def through_mxfp4(x: F64, block: int = 32) -> F64:
    """x after e2m1 with one power-of-two scale per block of channels.

    Shapes: [..., d] -> [..., d]
    """
    grouped, amax = _block_amax(x, block)
    exponent = exponent_e2m1(amax)
    return np.ldexp(to_e2m1(np.ldexp(grouped, -exponent)), exponent).reshape(x.shape)


def hadamard(x: F64) -> F64:
    """Orthonormal Sylvester-Hadamard rotation of the last axis, whose length is a power of two.

    Shapes: [..., d] -> [..., d]
    """
    matrix = np.ones((1, 1))
    while len(matrix) < x.shape[-1]:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return x @ matrix * x.shape[-1] ** -0.5
