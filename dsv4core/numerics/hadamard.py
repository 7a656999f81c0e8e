"""Hadamard-128 (CA1 rule 10): radix-2 butterflies in a fixed order, one scaling, one rounding to bf16."""

from __future__ import annotations

import torch
from torch import Tensor

WIDTH = 128


def hadamard128(x: Tensor) -> Tensor:
    """Multiply by the orthonormal Sylvester matrix of order 128.

    Shapes: x bf16 or f32 [..., 128] -> bf16 [..., 128]. Runs after RoPE and before quantisation, always on q
    and k together.
    """
    y = x.float()
    shape = y.shape
    stride = 1
    while stride < WIDTH:
        a, b = y.reshape(*shape[:-1], WIDTH // (2 * stride), 2, stride).unbind(-2)
        y = torch.stack((a + b, a - b), dim=-2)
        stride *= 2
    return (y.reshape(shape) * WIDTH**-0.5).to(torch.bfloat16)
