"""Rounding fp32 to an eight- or four-bit float with integer arithmetic, for devices without such a type."""

from __future__ import annotations

import struct

import torch
from torch import Tensor

MAGNITUDE = 0x7FFFFFFF
EXPONENT = 0x7F800000
MANTISSA_BITS = 23
BIAS = 127


def encode(x: Tensor, *, mantissa: int, min_exponent: int, limit: float, sign_bit: int) -> Tensor:
    """Codes of the nearest small floats: ties to even, subnormals, saturating, the sign of zero kept.

    Adding 2^(e + 23 - mantissa) to a magnitude below 2^(e + 1) leaves the wanted code in the low bits of the
    sum: the addition is the one rounding. Below the smallest normal number e stays at `min_exponent`, which
    gives the subnormals. NaN has the largest magnitude bits, so it saturates like infinity.

    Shapes: x f32 any -> u8 the same.
    """
    bits = x.view(torch.int32)
    top = struct.unpack("<i", struct.pack("<f", limit))[0]
    magnitude = (bits & MAGNITUDE).clamp_max_(top)
    shift = MANTISSA_BITS - mantissa
    lowest = (min_exponent + BIAS) << MANTISSA_BITS
    magic = (magnitude & EXPONENT).clamp_min_(lowest).add_(shift << MANTISSA_BITS)
    code = magnitude.view(torch.float32).add_(magic.view(torch.float32)).view(torch.int32).sub_(magic)
    code.add_(magic.bitwise_right_shift_(shift)).sub_((min_exponent + BIAS + shift) << mantissa)
    sign = (bits >> (32 - sign_bit.bit_length())).bitwise_and_(sign_bit)
    return code.bitwise_or_(sign).to(torch.uint8)
