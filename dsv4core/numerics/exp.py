"""Canonical exponential (CA1 rule 2): one polynomial, one order of roundings, on every device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LOG2E = 1.44269504
LN2_HIGH = 0.693359375
LN2_LOW = -2.12194440e-4
LEADING = 1.9875691500e-4
COEFFICIENTS = (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
BELOW = -87.00000762939453  # the largest f32 below -87
INTEGER = 12582912.0  # 1.5 * 2^23: the low bits of a sum with it are the other summand
ZERO_AT = -88.0  # here k is -127, whose power of two has the bits of 0


def exp_nonpositive(x: Tensor) -> Tensor:
    """exp(x) for x <= 0, bit-identical everywhere; x < -87 gives exactly 0 (so -inf does too).

    Shapes: any f32 -> the same. Maximum relative error 8.1e-8. Source: Cephes' expf, rounded step by step.
    """
    z = F.threshold(x, BELOW, ZERO_AT)
    k = (z * LOG2E).add_(0.5).floor_()
    p = k * LN2_LOW
    t = z.sub_(k, alpha=LN2_HIGH).sub_(p)  # k times LN2_HIGH is exact
    first, *others = COEFFICIENTS
    torch.mul(t, LEADING, out=p).add_(first)  # two torch calls, hence two roundings: nothing contracts them
    for c in others:
        p.mul_(t).add_(c)
    y = p.mul_(t * t).add_(t).add_(1.0)
    return y.mul_(k.add_(INTEGER + 127).view(torch.int32).bitwise_left_shift_(23).view(torch.float32))
