"""Index rows in mxfp4 as whole numbers: products of bytes are exact and take half the time of bf16's.

Codes of e2m1 are 0, 1, 2, 3, 4, 6, 8, 12 halves. Where the four scales of a row lie within a factor of 8, a
code becomes a byte, its halves times what its scale is above the row's lowest: 96 at most, and a dot product
1,179,648. A row of keys that spreads further sends its page to products of bf16, one of queries all pages of
its token.

Warps look at pages that have come before groups do, once for all: which scale is lowest, what the others are
above it, and whether the page's rows can be bytes at all.
"""

import cutlass
from cutlass import Int32, cute

from dsv4core_cuda.cutedsl.kernels._async import barrier_arrive, barrier_wait
from dsv4core_cuda.cutedsl.kernels._numerics import choose, magnitude
from dsv4core_cuda.cutedsl.kernels._ptx import (
    bits,
    from_bits,
    looked_up,
    mul,
    permuted,
    read_shared,
    write_shared,
)

NO_PAGE, WHOLE, WIDE = 0, 1, 2
"""What a stage has: nothing, a page whose rows are bytes, one whose rows are not."""
LOOKING = 2
"""Warps that look at pages, by turns."""
SPREAD = 4
"""Scales that a row may have, next to each other."""
ROWS = 512
"""Bytes of a stage's rows: for each 16 times what its scales are above the lowest, and the lowest as f32."""
TABLES = 16 * SPREAD
"""Bytes of the codes' bytes: for every shift those of positive codes, then those of negative ones."""
HALVES = (0x03020100, 0x0C080604)
ONES = 0x01010101


def spread(word):
    """The lowest of a row's four scales, bytes of what they are above it, and whether those are small."""
    lowest = word & 255
    for i in range(1, 4):
        lowest = cutlass.min(lowest, (word >> (8 * i)) & 255)
    above = word - lowest * ONES
    return (
        lowest,
        above,
        ((above & (-1 - ONES * (SPREAD - 1))) == 0) & (lowest > 0) & (lowest <= 255 - SPREAD),
    )


def table(shift):
    """The bytes of positive codes times 2^shift, then those of negative ones: 4 words."""
    positive = [Int32(x) << shift for x in HALVES]
    top = Int32(-0x7F7F7F80)  # 128 in every byte
    return positive + [(top - x) ^ top for x in positive]


def whole(word, by):
    """Eight codes as eight s8 of a `table`: codes 0 to 3, 4 to 7."""
    sizes, signs = word & 0x77777777, word << 4
    found = []
    for half, order in enumerate(("0xd9c8", "0xfbea")):
        place = sizes >> (16 * half)
        positive, negative = looked_up(by[0], by[1], place), looked_up(by[2], by[3], place)
        chosen = permuted(signs, word, order)
        found.append(positive ^ ((positive ^ negative) & chosen))
    return found


def stage_whole(queries, head, piece, word, shift):
    """Codes 8 piece .. of a head as bytes, where a thread that reads keys has the same channels."""
    block, step = piece // 4, piece % 4
    for half, four in enumerate(whole(word, table(shift))):
        chunk = 2 * step + half
        write_shared(queries + head * 128 + ((chunk ^ (head % 8)) << 4) + block * 4, [four])


def whole_weight(weight, scales):
    """What clamped products of a head with these scales are times, and whether its queries can be bytes.

    2^-22 of a product is clamped, halves of keys and of queries are 2^-2. Far from the ends of f32 nothing
    that is kept on the way is lost there.
    """
    lowest, _, fits = spread(scales)
    found = mul(from_bits(weight), from_bits((lowest + 20) << 23))
    size = magnitude(found)
    middle = (size == 0) & (magnitude(from_bits(weight)) == 0) | (size >= 27 << 23) & (size < 227 << 23)
    return bits(found), fits & (lowest < 235) & middle


def operands_whole(upper, lower, by_upper, by_lower):
    """Steps of a product from the 32 codes of rows r and r + 8 that a thread read. Shapes: 4 i32 each."""
    found = []
    for n in range(4):
        (a, c), (b, d) = whole(upper[n], by_upper), whole(lower[n], by_lower)
        found += [a, b, c, d]
    return found


@cute.jit
def look_at_pages(
    which, pages, fit, ring, full, seen, flags, rows, STAGE: cutlass.Constexpr, STAGES: cutlass.Constexpr
):
    """One warp: say of every other page what its rows are. `fit`: whether queries are bytes, two words."""
    lane = cute.arch.lane_idx()
    stage, parity = Int32(which), Int32(0)
    queries = read_shared(fit, 1)[0] & read_shared(fit + 4, 1)[0]
    for _ in cutlass.range(which, pages, LOOKING, unroll=1):
        barrier_wait(full + stage * 8, parity)
        fits = queries == 1
        for i in cutlass.range_constexpr(2):
            row = (lane + 32 * i) * 4
            lowest, above, small = spread(read_shared(ring + stage * STAGE + STAGE - 256 + row, 1)[0])
            fits = fits & small
            write_shared(rows + stage * ROWS + row, [above << 4])
            write_shared(rows + stage * ROWS + 256 + row, [lowest << 23])
        lanes = cute.arch.vote_ballot_sync(fits)
        if lane == 0:
            kind = choose(Int32, lanes == -1, WHOLE, WIDE)
            live = read_shared(flags + stage * 4, 1)[0]
            write_shared(flags + stage * 4, [choose(Int32, live == NO_PAGE, NO_PAGE, kind)])
        cute.arch.sync_warp()
        if lane == 0:
            barrier_arrive(seen + stage * 8)
        stage = stage + LOOKING
        if stage >= STAGES:
            stage = stage - STAGES
            parity = parity ^ 1
