"""Where the entry that a token completes is written."""

import triton
import triton.language as tl
from torch import Tensor

from dsv4core.kernels.triton._launch import launch, pieces
from dsv4core.kernels.triton._table import table_slots
from dsv4core.kernels.triton._tuning import tuned


@triton.jit(
    do_not_specialize=[
        "tokens",
        "slots_given",
        "width",
        "table_stride",
        "positions",
        "slots",
        "requests",
        "table",
    ]
)
def compressed_slot_mapping_kernel(
    positions, slots, requests, table, out, tokens, slots_given, width,
    position_stride, slot_stride, request_stride, table_stride, column_stride,
    RATIO: tl.constexpr, rows: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK tokens a program; -1 off a boundary, for padding and without a page."""
    t = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    slot = tl.load(slots + t * slot_stride, t < slots_given, other=-1)
    p = tl.load(positions + t * position_stride, t < slots_given, other=0)
    closes = (slot >= 0) & (p >= 0) & ((p + 1) % RATIO == 0)
    request = tl.load(requests + t * request_stride, closes, other=0).to(tl.int64)
    found = table_slots(table, request, p // RATIO, closes, width, table_stride, column_stride, rows)
    tl.store(out + t, found, t < tokens)


def compressed_slot_mapping(
    positions: Tensor,
    slot_mapping: Tensor,
    token_to_req: Tensor,
    block_table: Tensor,
    *,
    ratio: int,
    rows: int,
) -> Tensor:
    """The slot of entry floor(p / ratio) for a token that completes it, -1 for every other token.

    Shapes: positions i64 [T], slot_mapping i64 [<= T], token_to_req i32 [T], block_table i32 [R, W] -> i64
    [T].
    """
    tokens, meta = positions.shape[0], tuned("compressed_slot_mapping", positions)
    out = positions.new_empty(tokens)
    width = block_table.shape[1] if block_table.shape[0] else 0
    launch(
        compressed_slot_mapping_kernel, pieces(tokens, meta["BLOCK"]), positions, positions, slot_mapping,
        token_to_req, block_table, out, tokens, slot_mapping.shape[0], width, positions.stride(0),
        slot_mapping.stride(0), token_to_req.stride(0), block_table.stride(0), block_table.stride(1),
        RATIO=ratio, rows=rows, **meta,
    )  # fmt: skip
    return out
