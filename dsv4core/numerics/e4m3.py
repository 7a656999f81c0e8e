"""e4m3 (CA1 rule 8): one rounding from fp32, the same bytes with or without hardware support.

OCP e4m3fn is the format of every layout but one; FNUZ is that of AMD gfx942: half the value for the same
code, no infinity, and 0x80 is NaN instead of -0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from dsv4core.numerics import minifloat
from dsv4core.numerics.minifloat import look_up

MAX = 448.0
MAX_FNUZ = 224.0  # where writers saturate; the format itself reaches 240
NEGATIVE_ZERO = 0x80


def encode(x: Tensor) -> Tensor:
    """Bytes of x clamped to +-448: ties to even, subnormals down to 2^-9, the sign of zero kept.

    NaN saturates, so the NaN codes 0x7f and 0xff are never produced. Shapes: f32 or bf16 any -> u8 the same.
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


@cache
def _pairs(table: Callable[[torch.device], Tensor], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Both values of every two adjacent codes, in the order of the u16 that they are.

    One integer stands for two values: looking it up takes the time of one.
    Shapes: -> i32 (two bf16) or i64 (two f32) [65536].
    """
    codes = torch.arange(65536, dtype=torch.int32, device=device).to(torch.uint16).view(torch.uint8)
    both = look_up(table(device), codes).to(dtype)
    return both.view(torch.int32 if dtype == torch.bfloat16 else torch.int64)


def _decode(table: Callable[[torch.device], Tensor], code: Tensor, dtype: torch.dtype) -> Tensor:
    places = (code.storage_offset(), *code.shape[-1:], *code.stride()[:-1])
    if code.ndim == 0 or code.stride(-1) != 1 or any(place % 2 for place in places):
        return look_up(table(code.device), code).to(dtype)
    return look_up(_pairs(table, code.device, dtype), code.view(torch.uint16)).view(dtype)


def decode(code: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Values of e4m3fn bytes; 0x7f and 0xff are NaN. Shapes: u8 any -> f32 or bf16 the same."""
    return _decode(values, code, dtype)


def encode_fnuz(x: Tensor) -> Tensor:
    """FNUZ bytes of x clamped to +-224: ties to even, subnormals down to 2^-10; every zero becomes 0x00.

    NaN saturates, so the NaN code 0x80 is never produced. Shapes: f32 or bf16 any -> u8 the same.
    """
    code = minifloat.encode(x, mantissa=3, min_exponent=-7, limit=MAX_FNUZ, sign_bit=0x80)
    return code.masked_fill_(code == NEGATIVE_ZERO, 0)


@cache
def values_fnuz(device: torch.device) -> Tensor:
    """The 256 values of FNUZ on a device: half of the OCP reading, except 0x7f, 0xff (+-240) and 0x80 (NaN).

    Shapes: -> f32 [256].
    """
    table = values(device) / 2
    table[0x7F], table[0xFF], table[NEGATIVE_ZERO] = 240.0, -240.0, torch.nan
    return table


def decode_fnuz(code: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Values of FNUZ bytes; 0x80 is NaN. Shapes: u8 any -> f32 or bf16 the same."""
    return _decode(values_fnuz, code, dtype)
