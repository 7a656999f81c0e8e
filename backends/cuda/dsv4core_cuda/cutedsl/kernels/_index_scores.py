"""Scores of a page of index entries: a group of 128 threads, 64 entries by 64 heads."""

import cutlass
from cutlass import Float32, Int32, Int64, cute

from dsv4core_cuda.cutedsl.kernels._async import (
    barrier_arrive,
    barrier_wait,
    count_shared,
    products,
    tell_shared,
)
from dsv4core_cuda.cutedsl.kernels._best import TEAM, entry
from dsv4core_cuda.cutedsl.kernels._index_keys import operands_fp8, operands_mxfp4, stage_fp8, stage_mxfp4
from dsv4core_cuda.cutedsl.kernels._numerics import across, choose, magnitude
from dsv4core_cuda.cutedsl.kernels._ptx import (
    add,
    bits,
    fma,
    from_bits,
    larger,
    load_i32,
    mul,
    read_shared,
    write_shared_i64,
)

HEADS = 64
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
            stage_mxfp4(queries, head, piece, word, (scales >> (piece // 4 * 8)) & 255)
        else:
            stage_fp8(queries, head, piece, word)


@cute.jit
def score_page(
    stage, parity, index, visible, ring, full, empty, flags, queries, weights, entries, counter, sizes, least,
    thread, STAGE: cutlass.Constexpr, MXFP4: cutlass.Constexpr, BYTE: cutlass.Constexpr,
):  # fmt: skip
    """A group scores the page of a stage, which begins with entry `index`, and lists what may be chosen."""
    lane, warp = thread % 32, thread // 32 % 4
    row, part = warp * 16 + lane // 4, lane % 4
    RECORD = cutlass.const_expr(64 if MXFP4 else 128)
    at = ring + stage * STAGE
    barrier_wait(full + stage * 8, parity)
    upper = read_shared(at + row * RECORD + part * 16, 4)
    lower = read_shared(at + (row + 8) * RECORD + part * 16, 4)
    if cutlass.const_expr(not MXFP4):
        upper = upper + read_shared(at + row * RECORD + 64 + part * 16, 4)
        lower = lower + read_shared(at + (row + 8) * RECORD + 64 + part * 16, 4)
    mine = row + 8 * (part % 2)
    live = read_shared(flags + stage * 4, 1)[0]
    if cutlass.const_expr(MXFP4):
        a, b = [read_shared(at + 64 * RECORD + (row + 8 * i) * 4, 1)[0] for i in range(2)]
        a, b = [cutlass.min(cutlass.max((x >> (8 * part)) & 255, 1), 254) for x in (a, b)]
        top_a, top_b = across(a, 4, "max"), across(b, 4, "max")
        by_a = cutlass.max(a - top_a + 253, 0) << 7
        by_b = cutlass.max(b - top_b + 253, 0) << 7
        steps = operands_mxfp4(upper, lower, by_a | (by_a << 16), by_b | (by_b << 16))
        scale = from_bits(choose(Int32, part % 2 == 0, top_a, top_b) << 23)
    else:
        word = read_shared(at + 64 * RECORD + mine * 4, 1)[0]
        if cutlass.const_expr(BYTE):
            byte = word & 255
            word = choose(Int32, byte > 0, byte << 23, Int32(0x400000))
        scale = from_bits(word)
        steps = operands_fp8(upper, lower)
    cute.arch.sync_warp()
    if lane == 0:
        barrier_arrive(empty + stage * 8)
    address = Int64(queries & 0x3FFFF) >> 4
    dots = products(steps, address | Int64((1 << 16) | (64 << 32) | (1 << 62)), "bf16" if MXFP4 else "f16")
    sums = [Float32(0.0), Float32(0.0)]
    for j in cutlass.range_constexpr(8):
        pair = [from_bits(x) for x in read_shared(weights + (8 * j + 2 * part) * 4, 2)]
        for i in cutlass.range_constexpr(4):
            sums[i // 2] = fma(larger(dots[4 * j + i], 0.0), pair[i % 2], sums[i // 2])
    for i in cutlass.range_constexpr(2):
        for step in cutlass.range_constexpr(2):
            sums[i] = add(sums[i], cute.arch.shuffle_sync_bfly(sums[i], 1 << step))
    score = mul(choose(Float32, part % 2 == 0, sums[0], sums[1]), scale)
    if cutlass.const_expr(not MXFP4):
        score = add(score, score)  # codes were times 2^-8, queries times 2^7
    score = choose(Float32, live == 1, score, 0.0)
    size = magnitude(score)
    word = choose(Int32, size > 0x7F800000, Int32(-0x800000), choose(Int32, size == 0, 0, bits(score)))
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
