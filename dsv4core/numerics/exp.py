"""Canonical exponential (CA1 rule 2): one polynomial, one order of roundings, on every device."""

from __future__ import annotations

import torch
from torch import Tensor

LOG2E = 1.44269504
LN2_HIGH = 0.693359375
LN2_LOW = -2.12194440e-4
LEADING = 1.9875691500e-4
COEFFICIENTS = (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
UNDERFLOW = -87.0


def exp_nonpositive(x: Tensor) -> Tensor:
    """exp(x) for x <= 0, bit-identical everywhere; x < -87 gives exactly 0 (so -inf does too).

    Shapes: any f32 -> the same. Maximum relative error 8.1e-8. Source: Cephes' expf, rounded step by step.
    """
    z = torch.clamp(x, min=UNDERFLOW)
    k = torch.floor(z * LOG2E + 0.5)
    t = z - k * LN2_HIGH
    t = t - k * LN2_LOW
    p = torch.full_like(t, LEADING)
    for c in COEFFICIENTS:
        p = p * t + c  # two eager torch calls, hence two roundings: nothing can contract them
    y = p * (t * t)
    y = y + t
    y = y + 1.0
    y = y * ((k.to(torch.int32) + 127) << 23).view(torch.float32)
    return torch.where(x < UNDERFLOW, 0.0, y)
