"""Scores of a page of index entries: a group of 128 threads, 64 entries by 64 heads."""

import cutlass
from cutlass import Float32, Int32, Int64, cute

from dsv4core_cuda.cutedsl.kernels._async import (
    barrier_arrive,
    barrier_wait,
    count_shared,
    products,
    tell_shared,
    whole_products,
)
from dsv4core_cuda.cutedsl.kernels._best import TEAM, entry
from dsv4core_cuda.cutedsl.kernels._index_keys import operands_fp8, operands_mxfp4, stage_fp8, stage_mxfp4
from dsv4core_cuda.cutedsl.kernels._index_whole import (
    NO_PAGE,
    ONES,
    ROWS,
    SPREAD,
    TABLES,
    WHOLE,
    operands_whole,
    spread,
    stage_whole,
    table,
    whole_weight,
)
from dsv4core_cuda.cutedsl.kernels._numerics import across, choose
from dsv4core_cuda.cutedsl.kernels._ptx import (
    add,
    bits,
    fma,
    from_bits,
    larger,
    load_i32,
    mul,
    mul_clamped,
    read_shared,
    read_shared_u8,
    write_shared,
    write_shared_i64,
)

HEADS = 64
QUERIES = 16384
"""Bytes of queries as pairs of 16 bits; in mxfp4 those that are bytes lie behind."""
WEIGHTS = 4 * HEADS
TABLE = 2 * WEIGHTS
FIT = TABLE + TABLES
"""What lies behind the weights (`stage_weights`)."""
DESCRIPTOR = (1 << 16) | (64 << 32) | (1 << 62)
"""Rows of 128 bytes in blocks of 8 that exchange their 16 bytes; the address is missing."""
SIZES = 1024
FIRST = (127 - 32) << 4
"""Bins of scores by magnitude: exponents from 2^-32 on and four bits of the mantissa."""


@cute.jit
def stage_queries(queries, q, q_scales, t, heads, thread, MXFP4: cutlass.Constexpr):
    """A token's heads as the other operand of the products; zeros behind the last."""
    WORDS = cutlass.const_expr(16 if MXFP4 else 32)
    for i in cutlass.range_constexpr(HEADS * WORDS // TEAM):
        at = thread + i * TEAM
        head, piece = at // WORDS, at % WORDS
        word = Int32(0)
        if head < heads:
            word = load_i32(q + (Int64(t) * heads + head) * (WORDS * 4) + Int64(piece * 4))
        if cutlass.const_expr(MXFP4):
            scales = Int32(0)
            if head < heads:
                scales = load_i32(q_scales + (Int64(t) * heads + head) * 4)
            places = piece // 4 * 8
            stage_mxfp4(queries, head, piece, word, (scales >> places) & 255)
            stage_whole(queries + QUERIES, head, piece, word, (spread(scales)[1] >> places) & (SPREAD - 1))
        else:
            stage_fp8(queries, head, piece, word)


@cute.jit
def stage_weights(weights, given, q_scales, t, heads, thread, MXFP4: cutlass.Constexpr):
    """The weights of a token's heads, a thread each, and 0 behind the last.

    In mxfp4 those of products of bytes follow, what decodes keys, and of each of the two warps whether the
    queries of its heads can be bytes.
    """
    weight, scales = Int32(0), Int32(127 * ONES)
    if thread < heads:
        weight = load_i32(given + Int64(thread * 4))
        if cutlass.const_expr(MXFP4):
            scales = load_i32(q_scales + (Int64(t) * heads + thread) * 4)
    write_shared(weights + thread * 4, [weight])
    if cutlass.const_expr(MXFP4):
        folded, fits = whole_weight(weight, scales)
        write_shared(weights + WEIGHTS + thread * 4, [folded])
        lanes = cute.arch.vote_ballot_sync(fits)
        if thread % 32 == 0:
            write_shared(weights + FIT + thread // 32 * 4, [choose(Int32, lanes == -1, 1, 0)])
        if thread < SPREAD:
            write_shared(weights + TABLE + thread * 16, table(thread))


def weighted(dots, weights, part, clamp):
    """What a thread's 32 dot products add to its two rows: their positive ones times the heads' weights."""
    sums = [Float32(0.0), Float32(0.0)]
    for j in range(8):
        pair = [from_bits(x) for x in read_shared(weights + (8 * j + 2 * part) * 4, 2)]
        for i in range(4):
            sums[i // 2] = fma(clamp(dots[4 * j + i]), pair[i % 2], sums[i // 2])
    return sums


@cute.jit
def leave(empty, stage, lane):
    """A warp has read what it needs of a stage."""
    cute.arch.sync_warp()
    if lane == 0:
        barrier_arrive(empty + stage * 8)


@cute.jit
def sums_mxfp4(stage, at, rows, empty, queries, weights, kind, row, mine, part, lane):
    """A thread's part of the scores of two rows and the scale of the row that it has in the end."""
    upper = read_shared(at + row * 64 + part * 16, 4)
    lower = read_shared(at + row * 64 + part * 16 + 512, 4)
    sums = [Float32(0.0), Float32(0.0)]
    scale = Float32(0.0)
    if kind == WHOLE:
        rows = rows + stage * ROWS
        bys = [
            read_shared(weights + TABLE + read_shared_u8(rows + row * 4 + 32 * i + part), 4) for i in range(2)
        ]
        scale = from_bits(read_shared(rows + 256 + mine * 4, 1)[0])
        steps = operands_whole(upper, lower, *bys)
        leave(empty, stage, lane)
        dots = whole_products(steps, DESCRIPTOR | (Int64((queries + QUERIES) & 0x3FFFF) >> 4))
        big = from_bits(Int32(254 << 23))
        sums = weighted(dots, weights + WEIGHTS, part, lambda x: mul_clamped(from_bits(x), big))
    else:
        a, b = [read_shared(at + 64 * 64 + (row + 8 * i) * 4, 1)[0] for i in range(2)]
        a, b = [cutlass.min(cutlass.max((x >> (8 * part)) & 255, 1), 254) for x in (a, b)]
        top_a, top_b = across(a, 4, "max"), across(b, 4, "max")
        by_a = cutlass.max(a - top_a + 253, 0) << 7
        by_b = cutlass.max(b - top_b + 253, 0) << 7
        scale = from_bits(choose(Int32, part % 2 == 0, top_a, top_b) << 23)
        by_a, by_b = by_a | (by_a << 16), by_b | (by_b << 16)
        leave(empty, stage, lane)
        address, dots = DESCRIPTOR | (Int64(queries & 0x3FFFF) >> 4), ()
        for half in (0, 1):  # one after the other: registers
            words = slice(2 * half, 2 * half + 2)
            steps = operands_mxfp4(upper[words], lower[words], by_a, by_b)
            dots = products(steps, address + 512 * half, "bf16", dots)
        sums = weighted(dots, weights, part, lambda x: larger(x, 0.0))
    return sums[0], sums[1], scale


@cute.jit
def sums_fp8(stage, at, empty, queries, weights, row, mine, part, lane, BYTE: cutlass.Constexpr):
    """As `sums_mxfp4`."""
    upper = read_shared(at + row * 128 + part * 16, 4) + read_shared(at + row * 128 + 64 + part * 16, 4)
    row = row + 8
    lower = read_shared(at + row * 128 + part * 16, 4) + read_shared(at + row * 128 + 64 + part * 16, 4)
    word = read_shared(at + 64 * 128 + mine * 4, 1)[0]
    if cutlass.const_expr(BYTE):
        byte = word & 255
        word = choose(Int32, byte > 0, byte << 23, Int32(0x400000))
    steps = operands_fp8(upper, lower)
    leave(empty, stage, lane)
    dots = products(steps, DESCRIPTOR | (Int64(queries & 0x3FFFF) >> 4), "f16")
    sums = weighted(dots, weights, part, lambda x: larger(x, 0.0))
    return sums[0], sums[1], from_bits(word)


@cute.jit
def score_page(
    stage, parity, index, visible, ring, there, empty, flags, rows, queries, weights, entries, counter, sizes,
    least, thread, STAGE: cutlass.Constexpr, MXFP4: cutlass.Constexpr, BYTE: cutlass.Constexpr,
):  # fmt: skip
    """A group scores the page of a stage, which begins with entry `index`, and lists what may be chosen.

    `there`: the barrier of a stage whose page can be read.
    """
    lane, warp = thread % 32, thread // 32 % 4
    row, part = warp * 16 + lane // 4, lane % 4
    mine = row + 8 * (part % 2)
    at = ring + stage * STAGE
    barrier_wait(there + stage * 8, parity)
    kind = read_shared(flags + stage * 4, 1)[0]
    if cutlass.const_expr(MXFP4):
        one, other, scale = sums_mxfp4(stage, at, rows, empty, queries, weights, kind, row, mine, part, lane)
    else:
        one, other, scale = sums_fp8(stage, at, empty, queries, weights, row, mine, part, lane, BYTE)
    # a lane of two keeps a row each
    even = part % 2 == 0
    score = add(
        choose(Float32, even, one, other), cute.arch.shuffle_sync_bfly(choose(Float32, even, other, one), 1)
    )
    score = add(score, cute.arch.shuffle_sync_bfly(score, 2))
    if cutlass.const_expr(MXFP4):
        score = fma(score, scale, 0.0)  # -0 becomes 0
    else:
        score = fma(mul(score, scale), 2.0, 0.0)  # codes were times 2^-8, queries times 2^7
    score = choose(Float32, kind == NO_PAGE, 0.0, larger(score, from_bits(Int32(-0x800000))))
    word = bits(score)
    key = word ^ ((word >> 31) & 0x7FFFFFFF)
    place = index + mine
    wanted = (part < 2) & (key >= read_shared(least, 1)[0]) & (place < visible)
    lanes = cute.arch.vote_ballot_sync(wanted)
    if lanes != 0:
        start = Int32(0)
        if lane == 0:
            start = count_shared(counter, cute.arch.popc(lanes))
        start = cute.arch.shuffle_sync(start, 0)
        if wanted:
            behind = cute.arch.popc(lanes & ((Int32(1) << lane) - 1))
            write_shared_i64(entries + (start + behind) * 8, entry(key, place))
            bin_ = cutlass.min(cutlass.max((key >> 19) - FIRST, 0), SIZES - 1)
            tell_shared(sizes + bin_ * 4, 1)
