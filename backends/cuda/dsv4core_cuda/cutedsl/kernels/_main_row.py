"""Rows of `fp8_ds_mla` pages as a warp writes them: 448 e4m3 codes, 64 bf16, 7 scale bytes and a zero."""

import cutlass
from cutlass import Int32, cute

from dsv4core_cuda.cutedsl.kernels._numerics import (
    across,
    choose,
    exponent_e4m3,
    finite,
    power_of_two,
    scale_byte,
    unpack_bf16,
    widest,
)
from dsv4core_cuda.cutedsl.kernels._ptx import bits, mul, pair_bf16, pair_e4m3, store_words

LEAST = 0x38D1B717
"""The bits of 1e-4, which bounds the largest magnitude of a group from below."""


ROW_BYTES = {
    "fp8_ds_mla": (576, 8), "index_fp8": (128, 4), "index_fp8_ue8m0x4": (128, 4),
    "index_fp8_hadamard_f32": (128, 4), "index_mxfp4": (64, 4), "index_mxfp4_hadamard": (64, 4),
}  # fmt: skip
"""Bytes of a row and of its scales, which lie behind all rows of a page."""


def row_places(layout, cache, slot, rows, page_stride):
    """Addresses of a slot's codes and of its scales. Shapes: i64."""
    size, scales = ROW_BYTES[layout]
    page = slot // rows
    row = slot - page * rows
    start = cache + page * page_stride
    return start + row * size, start + rows * size + row * scales


def settled(values):
    """A thread's values as a row holds them: on the bf16 grid, NaN 0, infinity 2^127."""
    found = []
    for i in range(0, len(values), 2):
        found += [finite(x) for x in unpack_bf16(pair_bf16(values[i], values[i + 1]))]
    return found


def byte_pair(values, amax):
    """Two values of a group as e4m3 codes in 16 bits, and the group's scale byte; amax: its bits."""
    exponent = exponent_e4m3(cutlass.max(amax, Int32(LEAST)))
    scale = power_of_two(-exponent)
    return pair_e4m3(mul(values[0], scale), mul(values[1], scale)), scale_byte(exponent)


def codes(values, amax):
    """Four values of a group as a word of e4m3 codes, and the group's scale byte; amax: its bits."""
    low, byte = byte_pair(values[:2], amax)
    high, _ = byte_pair(values[2:], amax)
    return low | (high << 16), byte


def tail_words(values):
    """Four values on the bf16 grid as two words."""
    return [(bits(a) >> 16) & 0xFFFF | bits(b) & Int32(-65536) for a, b in (values[:2], values[2:])]


@cute.jit
def store_main_row(start, behind, y, turned):
    """Write a row of which a lane has channels 128 c + 4 lane .., and its upper half the rotated tail."""
    lane = cute.arch.lane_idx()
    scales = Int32(0)
    for c in cutlass.range_constexpr(4):
        values = settled(y[4 * c : 4 * c + 4])
        word, byte = codes(values, across(widest(values), 16, "max"))
        if c < 3:
            store_words(start + c * 128 + lane * 4, [word])
        else:
            byte = choose(Int32, lane < 16, byte, 0)
            if lane < 16:
                store_words(start + 384 + lane * 4, [word])
            else:
                store_words(start + 448 + (lane - 16) * 8, tail_words(turned))
        scales = scales | (byte << (8 * c))
    other = cute.arch.shuffle_sync_bfly(scales, 16)
    if lane == 0:
        low = interleaved(scales & 0xFFFF, other & 0xFFFF)
        high = interleaved((scales >> 16) & 0xFFFF, (other >> 16) & 0xFFFF)
        store_words(behind, [low, high])


def interleaved(even, odd):
    """Bytes of two words of 16 bits, in turn."""
    spread = [(x | (x << 8)) & 0x00FF00FF for x in (even, odd)]
    return spread[0] | (spread[1] << 8)
