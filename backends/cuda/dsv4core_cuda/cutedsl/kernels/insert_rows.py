"""Rotated key rows into `fp8_ds_mla` pages: a warp has several rows on their way at once."""

import cutlass
from cutlass import Int32, Int64, cute

from dsv4core_cuda.cutedsl.kernels._main_row import byte_pair, row_places, settled, tail_words
from dsv4core_cuda.cutedsl.kernels._numerics import choose, unpack_bf16
from dsv4core_cuda.cutedsl.kernels._ptx import load_i64, load_words, pair_most, permuted, store_words

HALVES = 0x00010001


def largest(words):
    """The larger magnitudes of the low and of the high halves of words, as a pair of bf16 bits."""
    found = words[0] & 0x7FFF * HALVES
    for word in words[1:]:
        found = pair_most(found, word & 0x7FFF * HALVES)
    return found


def group_sizes(first, second):
    """Largest magnitudes over 8 lanes of two sets of words: bits of the first below, of the second above."""
    a, b = largest(first), largest(second)
    pair = pair_most(permuted(a, b, "0x5410"), permuted(a, b, "0x7632"))
    for lane in (1, 2, 4):
        pair = pair_most(pair, cute.arch.shuffle_sync_bfly(pair, lane))
    return pair


def repaired(words):
    """Words of bf16 with NaN as 0 and infinity as 2^127."""
    values = [y for word in words for y in unpack_bf16(word)]
    values = settled(values)
    return tail_words(values[:4]) + tail_words(values[4:])


def encoded(words, size):
    """Eight bf16 as two words of e4m3 codes, and their scale byte; size: bf16 bits of the group's largest."""
    values = [y for word in words for y in unpack_bf16(word)]
    pairs = [byte_pair(values[i : i + 2], size << 16) for i in (0, 2, 4, 6)]
    codes = [pair for pair, _ in pairs]
    return [codes[0] | (codes[1] << 16), codes[2] | (codes[3] << 16)], pairs[0][1]


@cute.jit
def store_row(first, second, slot, cache, page_stride, ROWS):
    """Quantise and write a row of which a lane has channels 8 lane .. and 256 + 8 lane .., rotated."""
    lane = cute.arch.lane_idx()
    pair = group_sizes(first, second)
    bad = ((pair & 0x7FFF) >= 0x7F80) | ((pair >> 16) >= 0x7F80)
    if cute.arch.vote_any_sync(bad):
        first, second = repaired(first), repaired(second)
        pair = group_sizes(first, second)
    start, behind = row_places("fp8_ds_mla", cache, slot, ROWS, page_stride)
    words, byte = encoded(first, pair & 0xFFFF)
    low = cute.arch.warp_redux_sync(byte << (lane & 24), "or")
    store_words(start + lane * 8, words)
    words, byte = encoded(second, pair >> 16)
    high = cute.arch.warp_redux_sync(choose(Int32, lane < 24, byte << (lane & 24), 0), "or")
    if lane < 24:
        store_words(start + 256 + lane * 8, words)
    else:
        store_words(start + 256 + lane * 16 - 192, second)
    if lane == 0:
        store_words(behind, [low, high])


@cute.kernel
def kernel(
    k: Int64, cache: Int64, slots: Int64, count: Int32, k_stride: Int64, page_stride: Int64,
    slot_stride: Int64, ROWS: cutlass.Constexpr, AT_ONCE: cutlass.Constexpr, WARPS: cutlass.Constexpr,
):  # fmt: skip
    """A warp writes AT_ONCE rows; strides are bytes. A negative slot writes nothing."""
    lane = cute.arch.lane_idx()
    begin = (cute.arch.block_idx()[0] * WARPS + cute.arch.warp_idx()) * AT_ONCE
    if begin < count:
        loaded = []
        for i in cutlass.range_constexpr(AT_ONCE):
            t = Int64(cutlass.min(begin + i, count - 1))
            row = k + t * k_stride + lane * 16
            loaded.append((load_words(row, 4), load_words(row + 512, 4), load_i64(slots + t * slot_stride)))
        for i in cutlass.range_constexpr(AT_ONCE):
            first, second, slot = loaded[i]
            if (begin + i < count) & (slot >= 0):
                store_row(first, second, slot, cache, page_stride, ROWS)
