"""Listed rows of `fp8_ds_mla` pages into shared memory as bf16: eight rows a warp, loaded ahead of their use.

A tile of rows lies there as 8 blocks of 64 channels, which is what matrix units read: rows of 128 bytes whose
eight 16-byte pieces are exchanged by the number of the row.
"""

import cutlass
from cutlass import Int32, cute

from dsv4core_cuda.cutedsl.kernels._ptx import (
    chosen_bytes,
    fetch_line,
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
def fetch(row, scales, base, lane):
    """Begin to load eight rows; lane base + i has addresses of row i and of its scales.

    -> words of codes (16 bytes a lane and row, of lanes up to 27), 32 bytes of a row's rotated channels and
    two of its scale bytes.
    """
    # Lanes of odd blocks of 64 channels take the rows of a pair the other way round: their stores then meet
    # other banks than those of the block before. Rotated channels are cut alike.
    odd = (lane // 4) % 2
    raw = []
    for i in cutlass.range_constexpr(ROWS):
        raw.append(load_words(cute.arch.shuffle_sync(row, base + (i ^ odd)) + lane * 16, 4))
    mine = lane // 4
    start = cute.arch.shuffle_sync(row, base + mine) + (448 + lane % 4 * 16)
    rotated = [load_words(start + odd * 64, 4), load_words(start + (1 - odd) * 64, 4)]
    pair = load_u8_pair(cute.arch.shuffle_sync(scales, base + mine) + lane % 4 * 2)
    return raw, rotated, pair


@cute.jit
def announce(row, scales, lane):
    """Begin to bring the 32 rows of a warp's lanes to the last-level cache, the first lanes' first."""
    for i in cutlass.range_constexpr(4):
        mine = i * 8 + lane // 4
        start, tail = cute.arch.shuffle_sync(row, mine), cute.arch.shuffle_sync(scales, mine)
        last = start + 575
        fetch_line(start + lane % 4 * 128)
        fetch_line(last if lane % 2 == 0 else tail)


@cute.jit
def spread(tile, raw, rotated, pair, live, base, lane, KEYS: cutlass.Constexpr):
    """Write eight rows of a tile of KEYS rows as bf16, from the shared address `tile` on, which 1024 divides.

    Zeros where no row is (`live` of lane base + i).
    """
    BLOCK: cutlass.Constexpr = KEYS * 128
    mine = lane // 4
    odd = mine % 2
    there = 0 - cute.arch.shuffle_sync(live, base + mine)
    # a lane's two bytes as bf16 2^(byte - 7); what is left of larger ones is multiplied afterwards
    low, high = pair & 0xFF, pair >> 8
    factors = (power(low) | (power(high) << 16)) & there
    more = rest_of(low) | (rest_of(high) << 16)
    first = tile + mine * BLOCK + odd * 128 + ((lane % 4 * 2 ^ odd) << 4)
    if cute.arch.vote_any_sync((low > LARGEST) | (high > LARGEST)):
        write_codes(first, raw, factors, more, lane, True)
    else:
        write_codes(first, raw, factors, more, lane, False)
    to = tile + (7 * BLOCK + mine * 128)
    write_shared(to + ((lane % 4 + odd * 4 ^ mine) << 4), [w & there for w in rotated[0]])
    write_shared(to + ((lane % 4 + 4 - odd * 4 ^ mine) << 4), [w & there for w in rotated[1]])


@cute.jit
def write_codes(first, raw, factors, more, lane, TWICE: cutlass.Constexpr):
    """A lane's codes of eight rows, times their factors, to `first` for the first of its rows.

    Where the others go differs in bits that no address of the first has carried into.
    """
    mine = lane // 4
    source = lane // 8
    chosen = 0x1010 + mine % 2 * 0x2222
    for i in cutlass.range_constexpr(ROWS):
        scale = chosen_bytes(cute.arch.shuffle_sync(factors, (i ^ mine % 2) * 4 + source), chosen)
        words = []
        for w in raw[i]:
            words += [pair_mul(x, scale) for x in code_pairs(w)]
        if cutlass.const_expr(TWICE):
            again = chosen_bytes(cute.arch.shuffle_sync(more, (i ^ mine % 2) * 4 + source), chosen)
            words = [pair_mul(x, again) for x in words]
        if lane < 28:
            write_shared(first ^ (i * 144), words[:4])
            write_shared(first ^ (i * 144 ^ 16), words[4:])


def power(byte):
    """2^(byte - 7) as bf16 for bytes up to LARGEST, its largest power beyond."""
    return (cutlass.min(byte, Int32(LARGEST)) + 120) << 7


def rest_of(byte):
    """2^(byte - LARGEST) as bf16 beyond LARGEST, else 1."""
    return (cutlass.max(byte - LARGEST, Int32(0)) + 127) << 7
