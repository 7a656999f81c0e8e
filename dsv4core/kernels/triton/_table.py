"""Block tables: from a request's row numbers to slots, and the checks that read tables on the host."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv4core.errors import OpArgumentError


@triton.jit
def table_slots(table, request, index, live, width, row_stride, column_stride, rows: tl.constexpr):
    """Slot of row `index` of `request`: page * rows + row; -1 where not live or without a page.

    Shapes: request and index i64 of one shape -> i64.
    """
    column = index // rows
    inside = live & (index >= 0) & (column < width)
    place = table + request * row_stride + column * column_stride
    page = tl.load(place, inside, other=-1).to(tl.int64)
    return tl.where(inside & (page >= 0), page * rows + index % rows, -1)


@triton.jit
def table_rows(table, request, index, live, width, row_stride, column_stride, rows: tl.constexpr):
    """Page and row in it of row `index` of `request`; page -1 where not live or without one.

    Shapes: index i32, request i64 that broadcasts with it -> i32 twice. Half the width of `table_slots`,
    where a slot would be taken apart again.
    """
    column = index // rows
    inside = live & (index >= 0) & (column < width)
    place = table + request * row_stride + column.to(tl.int64) * column_stride
    return tl.load(place, inside, other=-1), index % rows


def refuse_holes(
    op: str, table: Tensor, request: Tensor, index: Tensor, wanted: Tensor, rows: int, pages: int, what: str
) -> None:
    """Checked mode: raise where a wanted row has no page of the cache.

    Shapes: request i64 and wanted bool broadcast with index i64.
    """
    request, index, wanted = torch.broadcast_tensors(request, index, wanted)
    index, request = index[wanted], request[wanted]
    if not index.numel():
        return
    column = torch.div(index, rows, rounding_mode="floor")
    width = table.shape[1]
    page = torch.full_like(index, -1)
    inside = column < width
    if width and table.shape[0]:
        page = torch.where(inside, table[request, column.clamp(0, width - 1)].long(), page)
    outside = (page < 0) | (page >= pages)
    if bool(outside.any()):
        expected = f"{what} for row {int(index[outside][0])} of request {int(request[outside][0])}"
        raise OpArgumentError(op, "block_table", expected, "-1, a narrower table or a page behind it")
