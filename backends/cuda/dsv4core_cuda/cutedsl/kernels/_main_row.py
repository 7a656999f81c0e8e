"""Rows of `fp8_ds_mla` pages as a warp writes them: 448 e4m3 codes, 64 bf16, 7 scale bytes and a zero."""

import cutlass
from cutlass import Int32

from dsv4core_cuda.cutedsl.kernels._numerics import (
    exponent_e4m3,
    finite,
    power_of_two,
    scale_byte,
    unpack_bf16,
)
from dsv4core_cuda.cutedsl.kernels._ptx import bits, mul, pair_bf16, pair_e4m3

LEAST = 0x38D1B717
"""The bits of 1e-4, which bounds the largest magnitude of a group from below."""


def row_places(cache, slot, rows, page_stride):
    """Addresses of a slot's codes and of its scales. Shapes: i64."""
    page = slot // rows
    row = slot - page * rows
    start = cache + page * page_stride
    return start + row * 576, start + rows * 576 + row * 8


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
