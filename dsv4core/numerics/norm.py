"""Canonical RMS norm (CA1 rule 3): an exact, order-free sum of squares on a 22-bit integer grid."""

from __future__ import annotations

import torch
from torch import Tensor

ROUND_TO_INTEGER = 12582912.0  # 1.5 * 2^23: adding and subtracting it rounds to an integer, ties to even
EXACT_F64_WIDTH = 2048  # squares are below 2^42, so 2^11 of them still sum exactly in a double


def power_of_two(k: Tensor) -> Tensor:
    """2^k as f32 from its bits. Shapes: i32 any, -126 <= k <= 127."""
    return ((k + 127) << 23).view(torch.float32)


def inverse_rms(y: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(y^2) + eps) with the same bits for every order of summation.

    Shapes: y f32 [..., n] -> f32 [..., 1].
    """
    n = y.shape[-1]
    amax = y.abs().amax(dim=-1, keepdim=True)
    exponent = (amax.view(torch.int32) >> 23).clamp(min=30)
    k = 147 - exponent
    grid = (y * power_of_two(k)).add_(ROUND_TO_INTEGER).sub_(ROUND_TO_INTEGER)
    if n <= EXACT_F64_WIDTH:
        total = grid.double().square_().sum(dim=-1, keepdim=True).float()
    else:
        total = grid.to(torch.int64).square_().sum(dim=-1, keepdim=True).float()
    back = power_of_two(-k)
    # By a tensor: a device may turn division by a number into a product with its reciprocal.
    mean = ((total * back) * back) / torch.full_like(total, n)
    shifted = mean + torch.full_like(mean, eps)  # eps rounds to f32 first; a number might be added in double
    # torch.sqrt of f32 is not correctly rounded on CPUs; through a double it is.
    return 1.0 / shifted.double().sqrt().float()


def rms_norm(y: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """(y * inverse_rms(y)) * weight, two roundings; without a weight one.

    Shapes: y f32 [..., n], weight f32 or bf16 [n] -> f32 [..., n].
    """
    normed = y * inverse_rms(y, eps)
    return normed if weight is None else normed * weight.float()
