"""FP4 e2m1 (CA1 rule 8): eight magnitudes and a sign, two codes a byte, even element in the low nibble."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from dsv4core.numerics import minifloat
from dsv4core.numerics.minifloat import look_up

MAX = 6.0
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def encode(x: Tensor) -> Tensor:
    """Codes 0..15 of x clamped to +-6: ties to even, bit 3 is the sign, also of zero.

    Shapes: f32 or bf16 any -> u8 the same.
    """
    return minifloat.encode(x, mantissa=1, min_exponent=0, limit=MAX, sign_bit=8)


@cache
def values(device: torch.device) -> Tensor:
    """The 16 values of the format on a device. Shapes: -> f32 [16]."""
    both = (*MAGNITUDES, *(-m for m in MAGNITUDES))
    return torch.tensor(both, dtype=torch.float32, device=device)


def decode(code: Tensor) -> Tensor:
    """Values of codes 0..15. Shapes: u8 any -> f32 the same."""
    return look_up(values(code.device), code)


def pack(code: Tensor) -> Tensor:
    """Two codes a byte. Shapes: u8 [..., 2n] -> u8 [..., n]."""
    return code[..., 0::2] | (code[..., 1::2] << 4)


def unpack(packed: Tensor) -> Tensor:
    """The codes of packed bytes. Shapes: u8 [..., n] -> u8 [..., 2n]."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)
