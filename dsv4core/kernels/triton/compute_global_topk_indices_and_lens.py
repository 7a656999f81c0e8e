"""Turn request-local entry numbers into cache slots."""

import triton
import triton.language as tl
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.kernels.triton._launch import launch, power
from dsv4core.kernels.triton._table import table_slots

NAME = "compute_global_topk_indices_and_lens"


@triton.jit(do_not_specialize=["width", "table_stride", "topk", "requests", "table", "is_valid"])
def compute_global_topk_kernel(
    topk, requests, table, is_valid, out, lens, width, list_stride, entry_stride, request_stride,
    valid_stride, table_stride, column_stride, COUNT: tl.constexpr, rows: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a token: found slots move to the front in their order, -1 fills the rest."""
    t = tl.program_id(0).to(tl.int64)
    valid = tl.load(is_valid + t * valid_stride).to(tl.int32) != 0
    i = tl.arange(0, BLOCK)
    entry = tl.load(topk + t * list_stride + i * entry_stride, i < COUNT, other=-1).to(tl.int64)
    live = (entry >= 0) & (valid + tl.zeros([BLOCK], tl.int32) != 0)
    request = tl.load(requests + t * request_stride).to(tl.int64) + tl.zeros([BLOCK], tl.int64)
    slot = table_slots(table, request, entry, live, width, table_stride, column_stride, rows)
    found = (slot >= 0).to(tl.int32)
    before = tl.cumsum(found, 0)
    total = tl.sum(found, 0)
    place = tl.where(found != 0, before - 1, total + i - before)  # every place is taken exactly once
    tl.store(out + t * COUNT + place, slot.to(tl.int32), i < COUNT)
    tl.store(lens + t, total)


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
    launch(
        compute_global_topk_kernel, tokens, topk, topk, token_to_req, block_table, is_valid, out, lens, width,
        topk.stride(0), topk.stride(1), token_to_req.stride(0), is_valid.stride(0), block_table.stride(0),
        block_table.stride(1), COUNT=count, rows=rows, BLOCK=power(count), num_warps=4,
    )  # fmt: skip
    return out, lens
