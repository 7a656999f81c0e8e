"""Deterministic top-k: ascending indices, ties to the lower index, -1 behind."""

from __future__ import annotations

import torch
from torch import Tensor


def select(scores: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of every row, in ascending index, and their scores.

    Columns hold ascending indices; an index of -1 marks a column that is not a candidate. NaN counts as -inf.
    Shapes: scores f32 [T, n], indices i32 [T, n] -> i32 [T, k] (-1 behind), f32 [T, k] (-inf behind).
    """
    rows, n = scores.shape
    chosen = torch.full((rows, k), -1, dtype=torch.int32, device=scores.device)
    values = torch.full((rows, k), -torch.inf, dtype=scores.dtype, device=scores.device)
    if n == 0 or k == 0:
        return chosen, values
    valid = indices >= 0
    key = torch.where(valid & ~scores.isnan(), scores + 0.0, -torch.inf)  # + 0.0 joins -0 and +0
    keep = valid
    if n > k:
        # The k-th value is unique even where its position is not; the ties are then taken from the left.
        threshold = key.topk(k, dim=1, sorted=True).values[:, -1:]
        above = valid & (key > threshold)
        tied = valid & (key == threshold)
        room = k - above.sum(dim=1, keepdim=True)
        keep = above | (tied & (tied.cumsum(dim=1) <= room))
    place = torch.where(keep, keep.cumsum(dim=1) - 1, k)  # column k is a bin for what is not kept
    chosen = _scatter(place, indices, k, -1)
    values = _scatter(place, key, k, -torch.inf)
    return chosen, values


def _scatter(place: Tensor, source: Tensor, k: int, fill: float) -> Tensor:
    wide = torch.full((source.shape[0], k + 1), fill, dtype=source.dtype, device=source.device)
    return wide.scatter_(1, place, source)[:, :k].contiguous()
