"""One part of a softmax as aiter's decode kernels leave it."""

from __future__ import annotations

import torch
from torch import Tensor

LOG2E = 1.4426950408889634
Part = tuple[Tensor, Tensor, Tensor]  # acc f64 [H, 512], m f64 [H] in units of log 2, l f64 [H]


def part(q: Tensor, keys: Tensor, scale: float) -> Part:
    """Attend to some keys in float64: roundings and orders are a kernel's own, and not what this is about.

    Shapes: q bf16 [H, 512], keys bf16 [n, 512].
    """
    heads = q.shape[0]
    if not keys.shape[0]:
        f64 = torch.float64
        low = torch.full((heads,), -torch.inf, dtype=f64)
        return torch.zeros(heads, 512, dtype=f64), low, torch.zeros(heads, dtype=f64)
    k = keys.double()
    s = (q.double() @ k.T) * (scale * LOG2E)
    m = s.amax(dim=1)
    p = torch.exp2(s - m.unsqueeze(1))
    return p @ k, m, p.sum(dim=1)


def finish(parts: list[Part], sink: Tensor) -> Tensor:
    """The output of a row: all parts and the sink, as aiter joins them. Shapes: -> f64 [H, 512]."""
    lifted = sink.double() * LOG2E
    top = torch.stack([lifted, *(m for _, m, _ in parts)]).amax(dim=0)
    total = torch.exp2(lifted - top)  # NaN for an infinite sink: inf - inf
    acc = torch.zeros_like(parts[0][0])
    for rows, m, sums in parts:
        weight = torch.exp2(m - top)
        total = total + weight * sums
        acc = acc + weight.unsqueeze(1) * rows
    return acc / total.unsqueeze(1)
