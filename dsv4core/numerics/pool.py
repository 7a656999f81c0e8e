"""Pooling of one compressed entry (CA1 rule 4): a per-channel softmax in eight fixed segments."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4core.numerics.exp import exp_nonpositive

SEGMENTS = 8


def pool(kv: Tensor, score: Tensor, valid: Tensor) -> Tensor:
    """Softmax-weighted sum over a window, channel by channel.

    Rows are in ascending position; rows that are not valid (before the sequence start) add nothing, whatever
    they hold, and are overwritten. Shapes: kv, score f32 [n, w, D], valid bool [n, w] -> f32 [n, D]. w is a
    multiple of 8.
    """
    n, w, d = kv.shape
    holes = (~valid).nonzero(as_tuple=True)
    score[holes], kv[holes] = -torch.inf, 0.0
    weight = exp_nonpositive(score - score.amax(dim=1, keepdim=True))  # 0 where not valid
    product = (kv * weight).view(n, SEGMENTS, w // SEGMENTS, d)
    weight = weight.view(n, SEGMENTS, w // SEGMENTS, d)
    total = kv.new_zeros(n, SEGMENTS, d)
    mass = kv.new_zeros(n, SEGMENTS, d)
    for j in range(w // SEGMENTS):
        mass += weight[:, :, j]
        total += product[:, :, j]
    a, s = total[:, 0], mass[:, 0]
    for segment in range(1, SEGMENTS):
        a, s = a + total[:, segment], s + mass[:, segment]
    return a / s
