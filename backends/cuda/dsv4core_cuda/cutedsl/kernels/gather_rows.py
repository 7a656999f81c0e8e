"""Rows of pages as dense bf16: what is read does not wait for the count of rows, which is looked at last."""

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
    ROWS: cutlass.Constexpr, WHOLE: cutlass.Constexpr, AT_ONCE: cutlass.Constexpr, WARPS: cutlass.Constexpr,
):  # fmt: skip
    """Warp i of request b writes rows AT_ONCE * i ..; strides are bytes.

    WHOLE: all rows of a request, so that row i is row i of its table. There is at least one page: what has
    none is read from the first and thrown away, so that no read waits for a branch. A lane writes channels
    8 lane .. and 256 + 8 lane ..; the last 64 are bf16 in the page.
    """
    lane = cute.arch.lane_idx()
    b = Int64(cute.arch.block_idx()[1])
    first = (cute.arch.block_idx()[0] * WARPS + cute.arch.warp_idx()) * AT_ONCE
    count = cutlass.min(load_i32(gather_lens + b * gather_stride), room)
    begin = Int32(0)
    if cutlass.const_expr(not WHOLE):
        begin = load_i32(seq_lens + b * seq_stride) - count
    second = 16 * (lane >> 1) if lane < 24 else 16 * lane - 192
    loaded = []
    for i in cutlass.range_constexpr(AT_ONCE):
        index = cutlass.max(begin + first + i, 0)
        column = index // ROWS
        place = table + b * table_stride + Int64(cutlass.min(column, width - 1)) * column_stride
        page = load_i32(place)
        there = (begin + first + i >= 0) & (column < width) & (page >= 0) & (page < pages)
        slot = choose(Int64, there, Int64(page) * ROWS + (index - column * ROWS), 0)
        start, behind = row_places("fp8_ds_mla", cache, slot, ROWS, page_stride)
        low, scales = load_words(start + lane * 8, 2), load_words(behind, 2)
        loaded.append((low, scales, load_words(start + 256 + second, 4), there))
    target = out + b * request_stride + Int64(offset + first) * row_stride + lane * 16
    shift, upper = lane & 24, (lane & 1) == 1
    for i in cutlass.range_constexpr(AT_ONCE):
        low, scales, high, there = loaded[i]
        if first + i < count:
            codes = [choose(Int32, upper, high[w + 2], high[w]) for w in range(2)]
            words = widened(codes, (scales[1] >> shift) & 255)
            words = [choose(Int32, lane < 24, a, c) for a, c in zip(words, high, strict=True)]
            words = widened(low, (scales[0] >> shift) & 255) + words
            words = [choose(Int32, there, word, 0) for word in words]
            store_words(target + i * row_stride, words[:4])
            store_words(target + i * row_stride + 512, words[4:])
