"""Rotary embedding (CA1 rule 5): pairs (2i, 2i+1) of the last 64 channels, products rounded before sums."""

from __future__ import annotations

import torch
from torch import Tensor

ROPE_DIM = 64


def rotate(x: Tensor, cos_sin: Tensor, *, inverse: bool = False) -> Tensor:
    """Rotate pairs (2i, 2i+1) by the table row's angles; `inverse` turns back.

    Shapes: x f32 [..., 64], cos_sin f32 broadcastable [..., 64] (32 cosines, then 32 sines) -> f32 [..., 64].
    """
    cos, sin = cos_sin.chunk(2, dim=-1)
    even, odd = x[..., 0::2].contiguous(), x[..., 1::2].contiguous()
    if inverse:
        pair = torch.complex((even * cos).add_(odd * sin), (odd * cos).sub_(even * sin))
    else:
        pair = torch.complex((even * cos).sub_(odd * sin), (even * sin).add_(odd * cos))
    return torch.view_as_real(pair).flatten(-2)  # complex only to interleave: several times faster than stack


def rotate_tail(x: Tensor, cos_sin: Tensor, *, inverse: bool = False) -> Tensor:
    """A copy of x whose last 64 channels are rotated.

    Shapes: x f32 [..., D], cos_sin f32 broadcastable [..., 64] -> f32 [..., D].
    """
    nope = x[..., :-ROPE_DIM]
    return torch.cat((nope, rotate(x[..., -ROPE_DIM:], cos_sin, inverse=inverse)), dim=-1)
