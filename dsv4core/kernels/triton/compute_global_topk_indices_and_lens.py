"""Turn request-local entry numbers into cache slots."""

import triton
import triton.language as tl
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.kernels.triton._early import start_early
from dsv4core.kernels.triton._launch import launch, pieces, power
from dsv4core.kernels.triton._table import table_slots
from dsv4core.kernels.triton._tuning import tuned

NAME = "compute_global_topk_indices_and_lens"


@triton.jit(do_not_specialize=["tokens", "width", "table_stride", "topk", "requests", "table", "is_valid"])
def compute_global_topk_kernel(
    topk, requests, table, is_valid, out, lens, tokens, width, list_stride, entry_stride, request_stride,
    valid_stride, table_stride, column_stride,
    COUNT: tl.constexpr, rows: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """ROWS tokens a program: found slots move to the front in their order, -1 fills the rest."""
    start_early(EARLY)
    t = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = t < tokens
    valid = tl.load(is_valid + t * valid_stride, inside, other=0).to(tl.int32) != 0
    i = tl.arange(0, BLOCK)[None, :]
    mask = inside[:, None] & (i < COUNT)
    place = topk + (t * list_stride)[:, None] + i * entry_stride
    entry = tl.load(place, mask, other=-1).to(tl.int64)
    request = tl.load(requests + t * request_stride, inside, other=0).to(tl.int64)
    request = request[:, None] + tl.zeros_like(entry)
    live = (entry >= 0) & valid[:, None]
    slot = table_slots(table, request, entry, live, width, table_stride, column_stride, rows)
    slot = tl.where(slot > 2147483647, -1, slot)  # no i32, so no slot: as if there were no page
    found = (slot >= 0).to(tl.int32)
    before = tl.cumsum(found, 1)
    total = tl.sum(found, 1)
    target = tl.where(found != 0, before - 1, total[:, None] + i - before)  # every place exactly once
    tl.store(out + (t * COUNT)[:, None] + target, slot.to(tl.int32), mask)
    tl.store(lens + t, total, inside)


def compute_global_topk_indices_and_lens(
    topk: Tensor, token_to_req: Tensor, block_table: Tensor, is_valid: Tensor, *, rows: int
) -> tuple[Tensor, Tensor]:
    """Slots of the listed entries, valid ones first in their order, and how many there are.

    Shapes: topk i32 [T, K], token_to_req i32 [T], block_table i32 [R, W], is_valid bool [T] -> slots i32
    [T, K], lens i32 [T]. Unchecked, an entry without a page becomes -1.
    """
    if rows < 1:
        raise OpArgumentError(NAME, "rows", ">= 1", str(rows))
    tokens, count = topk.shape
    out, lens = topk.new_empty(tokens, count), topk.new_empty(tokens)
    width = block_table.shape[1] if block_table.shape[0] else 0
    size = power(count)
    meta = tuned("compute_global_topk", topk)
    launch(
        compute_global_topk_kernel, pieces(tokens, meta["ROWS"]), topk, topk,
        token_to_req, block_table, is_valid,
        out, lens, tokens, width,
        topk.stride(0), topk.stride(1), token_to_req.stride(0), is_valid.stride(0), block_table.stride(0),
        block_table.stride(1), COUNT=count, rows=rows, BLOCK=size, **meta,
    )  # fmt: skip
    return out, lens
