"""Listed rows of `fp8_ds_mla` pages into shared memory as bf16: eight rows a warp, loaded ahead of their use.

A tile of rows lies there as 8 blocks of 64 channels, which is what matrix units read: rows of 128 bytes whose
eight 16-byte pieces are exchanged by the number of the row.
"""

import cutlass
from cutlass import Int32, cute

from dsv4core_cuda.cutedsl.kernels._ptx import (
    load_u8_pair,
    load_words,
    pair_mul,
    permuted,
    write_shared,
)

ROWS = 8
"""Rows that a warp takes at once."""
LARGEST = 134
"""Scale bytes up to this one fold into one product with 2^120: 2^(byte - 7) is a bf16."""


def code_pairs(w):
    """Four e4m3 codes as two pairs of bf16 that are the values times 2^-120, subnormal or not.

    A code's exponent and mantissa, moved behind a bf16 sign, are that.
    """
    high = ((w >> 4) & Int32(0x07070707)) | (w & Int32(-0x7F7F7F80))
    low = (w << 4) & Int32(-0x0F0F0F10)
    return [permuted(low, high, "0x5140"), permuted(low, high, "0x7362")]


@cute.jit
def fetch(row, scales, lane):
    """Begin to load eight rows; lane i (any i mod 8) has addresses of row i and of its scales.

    -> the words of codes (16 bytes a lane and row), the other words, the lane's two scale bytes of a row.
    """
    # Lanes of odd blocks of 64 channels take the rows of a pair the other way round: their stores then meet
    # other banks than those of the block before.
    odd = (lane // 4) % 2
    raw = []
    for i in cutlass.range_constexpr(ROWS):
        raw.append(load_words(cute.arch.shuffle_sync(row, i ^ odd) + lane * 16, 4))
    mine = lane // 4
    rest = load_words(cute.arch.shuffle_sync(row, mine) + (512 + lane % 4 * 16), 4)
    pair = load_u8_pair(cute.arch.shuffle_sync(scales, mine) + lane % 4 * 2)
    return raw, rest, pair


@cute.jit
def spread(tile, first, raw, rest, pair, live, lane, KEYS: cutlass.Constexpr):
    """Write eight rows from row `first` of a tile on, as bf16; zeros where no row is (`live` of lane i mod 8).
    """
    BLOCK: cutlass.Constexpr = KEYS * 128
    odd = (lane // 4) % 2
    # a lane's two bytes as bf16 2^(byte - 7); what is left of larger ones is multiplied afterwards
    there = cute.arch.shuffle_sync(live, lane // 4)
    low, high = pair & 0xFF, pair >> 8
    wide = cute.arch.vote_any_sync((low > LARGEST) | (high > LARGEST))
    factors = power(low, there) | (power(high, there) << 16)
    more = rest_of(low) | (rest_of(high) << 16)
    source = lane // 8
    for i in cutlass.range_constexpr(ROWS):
        r = i ^ odd
        scale = cute.arch.shuffle_sync(factors, r * 4 + source)
        scale = scale >> 16 if odd == 1 else scale & 0xFFFF
        scale = scale | (scale << 16)
        base = tile + (first + r) * 128
        mask = 0 - cute.arch.shuffle_sync(live, r)
        again = Int32(0)
        if wide:
            again = cute.arch.shuffle_sync(more, r * 4 + source)
            again = again >> 16 if odd == 1 else again & 0xFFFF
            again = again | (again << 16)
        if lane < 28:
            words = []
            for w in raw[i]:
                words += [pair_mul(x, scale) for x in code_pairs(w)]
            if wide:
                words = [pair_mul(x, again) for x in words]
            block = base + lane // 4 * BLOCK
            chunk = lane % 4 * 2
            write_shared(block + ((chunk ^ r) << 4), words[:4])
            write_shared(block + (((chunk + 1) ^ r) << 4), words[4:])
        else:
            words = [w & mask for w in raw[i]]
            write_shared(base + (7 * BLOCK + (((lane - 28) ^ r) << 4)), words)
    r = lane // 4
    words = [w & (0 - there) for w in rest]
    write_shared(tile + (7 * BLOCK + (first + r) * 128 + (((4 + lane % 4) ^ r) << 4)), words)


def power(byte, there):
    """2^(byte - 7) as bf16 for bytes up to LARGEST, its largest power beyond; 0 where no row is."""
    return ((cutlass.min(byte, Int32(LARGEST)) + 120) << 7) & (0 - there)


def rest_of(byte):
    """2^(byte - LARGEST) as bf16 beyond LARGEST, else 1."""
    return (cutlass.max(byte - LARGEST, Int32(0)) + 127) << 7
