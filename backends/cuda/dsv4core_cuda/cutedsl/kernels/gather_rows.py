"""Rows of pages as dense bf16: a warp looks up a row and has all of it under way at once."""

import cutlass
from cutlass import Int32, Int64, cute

from dsv4core_cuda.cutedsl.kernels._main_row import row_places
from dsv4core_cuda.cutedsl.kernels._numerics import choose
from dsv4core_cuda.cutedsl.kernels._ptx import (
    from_bits,
    from_pair_e4m3,
    load_i32,
    load_words,
    mul,
    pair_bf16,
    store_words,
    wait_turn,
)


def widened(codes, byte):
    """Eight e4m3 codes times their group's scale, as four words of bf16."""
    scale = from_bits(cutlass.min(cutlass.max(byte, 1), 254) << 23)
    found = []
    for word in codes:
        for pair in (word, word >> 16):
            low, high = from_pair_e4m3(pair)
            found.append(pair_bf16(mul(low, scale), mul(high, scale)))
    return found


@cute.kernel
def kernel(
    out: Int64, cache: Int64, seq_lens: Int64, gather_lens: Int64, table: Int64, room: Int32, width: Int32,
    pages: Int32, offset: Int32, request_stride: Int64, row_stride: Int64, page_stride: Int64,
    seq_stride: Int64, gather_stride: Int64, table_stride: Int64, column_stride: Int64,
    ROWS: cutlass.Constexpr, WHOLE: cutlass.Constexpr, WARPS: cutlass.Constexpr,
):  # fmt: skip
    """Warp i of request b writes row i; strides are bytes.

    WHOLE: all rows of a request, so that row i is row i of its table and no read waits for the count of rows.
    There is at least one page: what has none is read from the first and thrown away, so that no read waits
    for a branch. Lane l writes channels 8 l .. and 256 + 8 l ..; the last 64 are bf16 in the page.
    """
    wait_turn()
    lane = cute.arch.lane_idx()
    b = Int64(cute.arch.block_idx()[1])
    i = cute.arch.block_idx()[0] * WARPS + cute.arch.warp_idx()
    count = cutlass.min(load_i32(gather_lens + b * gather_stride), room)
    row = i
    if cutlass.const_expr(not WHOLE):
        row = load_i32(seq_lens + b * seq_stride) - count + i
    index = cutlass.max(row, 0)
    column = index // ROWS
    page = load_i32(
        table + b * table_stride + Int64(cutlass.min(column, width - 1)) * column_stride
    )  # fmt: skip
    there = (row >= 0) & (column < width) & (page >= 0) & (page < pages)
    slot = choose(Int64, there, Int64(page) * ROWS + (index - column * ROWS), 0)
    start, behind = row_places("fp8_ds_mla", cache, slot, ROWS, page_stride)
    second = 16 * (lane >> 1) if lane < 24 else 16 * lane - 192
    low, scales = load_words(start + lane * 8, 2), load_words(behind, 2)
    high = load_words(start + 256 + second, 4)
    shift, upper = lane & 24, (lane & 1) == 1
    if i < count:
        codes = [choose(Int32, upper, high[w + 2], high[w]) for w in range(2)]
        words = widened(codes, (scales[1] >> shift) & 255)
        words = [choose(Int32, lane < 24, a, c) for a, c in zip(words, high, strict=True)]
        words = widened(low, (scales[0] >> shift) & 255) + words
        words = [choose(Int32, there, word, 0) for word in words]
        target = out + b * request_stride + Int64(offset + i) * row_stride + lane * 16
        store_words(target, words[:4])
        store_words(target + 512, words[4:])
