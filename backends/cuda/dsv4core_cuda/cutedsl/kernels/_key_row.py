"""A key row as a warp has it: two runs of 8 neighbouring channels a lane, in words of two bf16."""

from cutlass import Int32, cute

from dsv4core_cuda.cutedsl.kernels._main_row import byte_pair, row_places, settled, tail_words
from dsv4core_cuda.cutedsl.kernels._numerics import choose, unpack_bf16
from dsv4core_cuda.cutedsl.kernels._ptx import pair_most, permuted, store_words

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
