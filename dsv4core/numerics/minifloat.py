"""Rounding fp32 to an eight- or four-bit float with integer arithmetic, for devices without such a type."""

from __future__ import annotations

import struct
from functools import cache

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
    gives the subnormals. NaN has the largest magnitude bits, so it saturates like infinity. Of bf16 there are
    so few numbers that their codes are looked up.

    Shapes: x f32 or bf16 any -> u8 the same.
    """
    if x.dtype == torch.bfloat16:
        codes = _codes(mantissa, min_exponent, limit, sign_bit, x.device)
        return look_up(codes, x.contiguous().view(torch.uint16))
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


@cache
def _codes(mantissa: int, min_exponent: int, limit: float, sign_bit: int, device: torch.device) -> Tensor:
    """Codes of all bf16 numbers in the order of the u16 that they are. Shapes: -> u8 [65536]."""
    every = (torch.arange(65536, dtype=torch.int32, device=device) << 16).view(torch.float32)
    return encode(every, mantissa=mantissa, min_exponent=min_exponent, limit=limit, sign_bit=sign_bit)


def look_up(table: Tensor, code: Tensor) -> Tensor:
    """table[code]; several times faster than indexing. Shapes: [n], u8 or u16 any -> the shape of code."""
    return table.index_select(0, code.to(torch.int32).flatten()).view(code.shape)
