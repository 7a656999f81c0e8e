"""Joining what aiter's decode leaves before its own last step: parts of one softmax."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG2E, LN2 = 1.0 / math.log(2.0), math.log(2.0)
Part = tuple[Tensor, Tensor, Tensor]  # acc f32 [T, S, Hp, 512], m f32 [T, S, Hp], l f32 [T, S, Hp]


def join(parts: list[Part], sink: Tensor, out: Tensor) -> Tensor:
    """One softmax over all parts and the sink into `out`; the log of the sum without the sink.

    A part holds m, a bound on its scores in units of log 2, l = sum_j 2^(s_j - m) and acc = sum_j
    2^(s_j - m) v_j, none with the sink in it. A part with l = 0 had nothing to attend to and its m means
    nothing. Shapes: sink f32 [H], out bf16 [T, H, 512] -> f32 [T, H], natural, +inf for an empty row.
    """
    heads = sink.shape[0]
    m = torch.cat([part[1][..., :heads] for part in parts], dim=1)
    total = torch.cat([part[2][..., :heads] for part in parts], dim=1)
    empty = total == 0
    m = m.masked_fill(empty, -torch.inf)
    peak = m.amax(dim=1)
    weight = torch.exp2(m - peak.unsqueeze(1)).masked_fill(empty, 0.0)
    sums = (weight * total).sum(dim=1)
    nothing = sums == 0
    lse = ((peak + sums.log2()) * LN2).masked_fill(nothing, torch.inf)
    top = torch.maximum(peak, sink * LOG2E)
    scale = torch.exp2(peak - top)
    share = scale / (sums * scale + torch.exp2(sink * LOG2E - top))
    share = share.masked_fill(nothing, 0.0)
    rows = torch.zeros_like(out, dtype=torch.float32)
    first = 0
    for acc, _, _ in parts:
        mine = weight[:, first : first + acc.shape[1]]
        rows += torch.einsum("tsh,tshd->thd", mine, acc[:, :, :heads])
        first += acc.shape[1]
    out.copy_(rows * share.unsqueeze(-1))
    return lse
