"""From a row of a request to its slot in paged memory, through the block table, and to the row itself."""

from __future__ import annotations

import torch
from torch import Tensor

MOST = 2**31 - 1
"""The largest slot of a list, which are i32."""


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


def slot_rows(view: Tensor, slots: Tensor, column: Tensor | int = 0, width: int | None = None) -> Tensor:
    """Copies of `width` values (all by default) from `column` on of the rows at slots >= 0.

    Shapes: view [N, rows, n] with stride(2) = 1, slots i64 or i32 any, column i64 broadcastable to slots ->
    [*slots.shape, width].
    """
    pages, rows, width = view.shape[0], view.shape[1], width or view.shape[2]
    index = slots.long()
    between = view.stride(0) - rows * view.stride(1)  # pages
    start = index // rows * between + index * view.stride(1) + column
    behind = (pages - 1) * view.stride(0) + (rows - 1) * view.stride(1) + view.shape[2]
    # One copy a row, out of a view that has a row at every element.
    flat = view.as_strided((max(behind - width + 1, 0) if pages else 0, width), (1, 1))
    return flat.index_select(0, start.flatten()).view(*slots.shape, width)
