"""The k largest of every row."""

from __future__ import annotations

import torch
from torch import Tensor

from aiter.form import need, told, typed


def top_k_per_row_prefill(
    logits, rowStarts, rowEnds, indices, values, numRows, stride0, stride1, k=2048, stable=False
):
    """Write `indices` i32 [rows, k]; without `stable` the order is nobody's, here falling."""
    need(logits.dtype == torch.float32 and logits.ndim == 2 and stride1 == 1, "topk.row_stride", told(logits))
    need(stride0 == logits.stride(0) and logits.stride(1) == 1, "topk.row_stride", told(logits))
    for ends in (rowStarts, rowEnds):
        typed(ends, torch.int32, 1, "topk.ends")
        need(ends.shape[0] == numRows == logits.shape[0], "topk.ends", told(ends))
    typed(indices, torch.int32, 2, "topk.short")
    need(tuple(indices.shape) == (numRows, k) and values is None, "topk.short", told(indices))
    for row in range(numRows):
        first, end = int(rowStarts[row]), int(rowEnds[row])
        need(first >= 0 and end <= logits.shape[1], "topk.ends", (first, end))
        indices[row] = -1
        order = torch.argsort(_keys(logits[row, first:end]), stable=True)[:k]
        found = order.sort().values if stable else order
        indices[row, : found.shape[0]] = found.int() + first


def _keys(row: Tensor) -> Tensor:
    """Ascending integers for falling numbers, by bits: +0 comes before -0."""
    bits = row.contiguous().view(torch.int32).long()
    return torch.where(bits < 0, bits & 0x7FFFFFFF, ~bits)
