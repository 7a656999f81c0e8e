"""Pooling of one compressed entry (CA1 rule 4): a per-channel softmax in eight fixed segments."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from dsv4core.numerics.exp import exp_nonpositive

SEGMENTS = 8


def pool(kv: Tensor, score: Tensor, valid: Tensor) -> Tensor:
    """Softmax-weighted sum over a window, channel by channel.

    Rows are in ascending position; rows that are not valid (before the sequence start) add nothing, whatever
    they hold. Shapes: kv, score f32 [n, w, D] (both overwritten), valid bool [n, w] -> f32 [n, D]. w is a
    multiple of 8.
    """
    holes = (~valid).nonzero(as_tuple=True)
    score[holes], kv[holes] = -torch.inf, 0.0
    weight = exp_nonpositive(score.sub_(score.amax(dim=1, keepdim=True)))  # 0 where not valid
    return _total(kv.mul_(weight)) / _total(weight)


def _total(x: Tensor) -> Tensor:
    """Sums over windows in the order of CA1, each begun at +0. Shapes: f32 [n, w, D] -> [n, D]."""
    n, w, d = x.shape
    segments = reduce(torch.add, x.view(n, SEGMENTS, w // SEGMENTS, d).unbind(2))
    return reduce(torch.add, segments.unbind(1)) + 0.0  # a sum begun at +0 is never -0
