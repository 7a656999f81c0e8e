"""From a row of a request to its slot in paged memory, through the block table."""

from __future__ import annotations

import torch
from torch import Tensor


def table_slots(block_table: Tensor, request: Tensor, index: Tensor, rows: int) -> Tensor:
    """Slots of row `index` of `request`: page * rows + row; -1 where the table has no page.

    Shapes: block_table i32 [R, W], request and index i64 broadcastable -> i64.
    """
    width = block_table.shape[1]
    column = torch.div(index, rows, rounding_mode="floor")
    inside = (index >= 0) & (column < width)
    if width == 0 or block_table.shape[0] == 0:
        return torch.full_like(inside, -1, dtype=torch.int64)
    page = block_table[request.long(), column.clamp(0, width - 1)].long()
    return torch.where(inside & (page >= 0), page * rows + index % rows, -1)
