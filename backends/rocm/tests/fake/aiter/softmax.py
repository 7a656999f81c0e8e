"""One part of a softmax as aiter's decode kernels leave it."""

from __future__ import annotations

import torch
from torch import Tensor

LOG2E = 1.4426950408889634
Part = tuple[Tensor, Tensor, Tensor]  # acc f32 [H, 512], m f32 [H] in units of log 2, l f32 [H]


def part(q: Tensor, keys: Tensor, scale: float) -> Part:
    """Attend to some keys in float32; roundings are a kernel's own. Shapes: q [H, 512], keys [n, 512]."""
    heads = q.shape[0]
    if not keys.shape[0]:
        return torch.zeros(heads, 512), torch.full((heads,), -torch.inf), torch.zeros(heads)
    k = keys.float()
    s = (q.float() @ k.T) * (scale * LOG2E)
    m = s.amax(dim=1)
    p = torch.exp2(s - m.unsqueeze(1))
    return p @ k, m, p.sum(dim=1)


def finish(parts: list[Part], sink: Tensor) -> Tensor:
    """The output of a row: all parts and the sink, as aiter joins them. Shapes: -> f32 [H, 512]."""
    lifted = sink * LOG2E
    top = torch.stack([lifted, *(m for _, m, _ in parts)]).amax(dim=0)
    total = torch.exp2(lifted - top)  # NaN for an infinite sink: inf - inf
    acc = torch.zeros_like(parts[0][0])
    for rows, m, sums in parts:
        weight = torch.exp2(m - top)
        total = total + weight * sums
        acc = acc + weight.unsqueeze(1) * rows
    return acc / total.unsqueeze(1)
