"""OCP e4m3fn (CA1 rule 8): one rounding from fp32, the same bytes with or without hardware support."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from dsv4core.numerics import minifloat

MAX = 448.0


def encode(x: Tensor) -> Tensor:
    """Bytes of x clamped to +-448: ties to even, subnormals down to 2^-9, the sign of zero kept.

    NaN saturates, so the NaN codes 0x7f and 0xff are never produced. Shapes: f32 any -> u8 the same.
    """
    return minifloat.encode(x, mantissa=3, min_exponent=-6, limit=MAX, sign_bit=0x80)


def _value(code: int) -> float:
    exponent, fraction = (code >> 3) & 15, code & 7
    if exponent == 15 and fraction == 7:
        magnitude = float("nan")
    elif exponent == 0:
        magnitude = fraction * 2.0**-9
    else:
        magnitude = (8 + fraction) * 2.0 ** (exponent - 10)
    return -magnitude if code & 0x80 else magnitude


@cache
def values(device: torch.device) -> Tensor:
    """The 256 values of the format on a device. Shapes: -> f32 [256]."""
    return torch.tensor([_value(code) for code in range(256)], dtype=torch.float32, device=device)


def decode(code: Tensor) -> Tensor:
    """Values of e4m3fn bytes; 0x7f and 0xff are NaN. Shapes: u8 any -> f32 the same."""
    return values(code.device)[code.to(torch.int32)]
