"""Rotary embedding (CA1 rule 5): pairs (2i, 2i+1) of the last 64 channels, products rounded before sums."""

from __future__ import annotations

import torch
from torch import Tensor

ROPE_DIM = 64


def rotate(x: Tensor, cos_sin: Tensor, *, inverse: bool = False) -> Tensor:
    """Rotate pairs (2i, 2i+1) by the table row's angles; `inverse` turns back.

    Shapes: x bf16 or f32 [..., 64], whose rows start at pairs, cos_sin f32 broadcastable [..., 64] (32
    cosines, then 32 sines) -> f32 [..., 64].
    """
    cos, sin = cos_sin.chunk(2, dim=-1)
    even, odd = _pairs(x)
    if inverse:
        pair = torch.complex((even * cos).add_(odd * sin), (odd * cos).sub_(even * sin))
    else:
        pair = torch.complex((even * cos).sub_(odd * sin), (even * sin).add_(odd * cos))
    return torch.view_as_real(pair).flatten(-2)  # complex only to interleave: several times faster than stack


def rotate_tail(x: Tensor, cos_sin: Tensor, *, inverse: bool = False) -> Tensor:
    """A copy of x whose last 64 channels are rotated, and then rounded once if x is bf16.

    Shapes: x bf16 or f32 [..., D], cos_sin f32 broadcastable [..., 64] -> [..., D].
    """
    out = x.clone(memory_format=torch.contiguous_format)
    tail = out[..., -ROPE_DIM:]
    tail.copy_(rotate(tail, cos_sin, inverse=inverse))
    return out


def _pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    """Even and odd channels in f32, out of the integer that a pair is: strides are several times slower."""
    if x.dtype == torch.bfloat16:
        both = x.view(torch.int32)
        return (both << 16).view(torch.float32), (both & ~0xFFFF).view(torch.float32)
    both = x.view(torch.int64)
    return both.to(torch.int32).view(torch.float32), (both >> 32).to(torch.int32).view(torch.float32)
