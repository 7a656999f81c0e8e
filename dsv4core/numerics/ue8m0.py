"""Power-of-two scales (CA1 rule 7): the exponent from the bits of amax, never from a logarithm."""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR_E4M3 = 1e-4  # on amax: caches and the indexer's q
FLOOR_OUTPUT = 1e-10  # on amax: the attention output
FLOOR_E2M1 = 6 * 2.0**-126

MANTISSA = 0x7FFFFF
ABOVE_0_875 = 0x600000  # the fraction bits of 0.875 * 2^e
ABOVE_0_75 = 0x400000


def _exponent(amax: Tensor, offset: int, above: int) -> Tensor:
    bits = amax.view(torch.int32)
    return (bits >> 23) - (126 + offset) + ((bits & MANTISSA) > above).to(torch.int32)


def exponent_e4m3(amax: Tensor) -> Tensor:
    """Smallest E with amax <= 448 * 2^E: with amax = m * 2^e it is e - 9 + [m > 0.875].

    The caller applies a floor first, so amax is a positive normal number. Shapes: f32 any -> i32 the same.
    """
    return _exponent(amax, 9, ABOVE_0_875)


def exponent_e4m3_fnuz(amax: Tensor) -> Tensor:
    """Smallest E with amax <= 224 * 2^E: with amax = m * 2^e it is e - 8 + [m > 0.875].

    The caller applies a floor first, so amax is a positive normal number. Shapes: f32 any -> i32 the same.
    """
    return _exponent(amax, 8, ABOVE_0_875)


def exponent_e2m1(amax: Tensor) -> Tensor:
    """Smallest E with amax <= 6 * 2^E: with amax = m * 2^e it is e - 3 + [m > 0.75].

    The caller applies a floor first, so amax is a positive normal number. Shapes: f32 any -> i32 the same.
    """
    return _exponent(amax, 3, ABOVE_0_75)


def to_byte(exponent: Tensor) -> Tensor:
    """The UE8M0 byte clamp(E + 127, 1, 254). Shapes: i32 any -> u8 the same."""
    return (exponent + 127).clamp(1, 254).to(torch.uint8)


def byte_exponent(byte: Tensor) -> Tensor:
    """E of a UE8M0 byte. Shapes: u8 any -> i32 the same.

    0 and 255 are never written; they read as 1 and 254, so that a zeroed page decodes to zeros.
    """
    return byte.to(torch.int32).clamp(1, 254) - 127


def exp2(exponent: Tensor) -> Tensor:
    """2^E exactly, from bits. Shapes: i32 any, -126 <= E <= 127 -> f32 the same."""
    return ((exponent + 127) << 23).view(torch.float32)
