"""Products of few tokens with e4m3 weights in 128 x 128 blocks: the inputs are split over a cluster.

A block has ROWS outputs, all tokens and a SEGMENT of the inputs, and asks for all of it at once: codes go to
the registers in which the matrix unit takes them, tokens to shared memory. A product of 128 inputs runs while
codes of the next 128 become bf16; sums are scaled by block in f32. Then the blocks send each other their sums
and each adds, in the order of the segments, those of its share of the outputs. The cut depends on the shape
of the weight alone, so the bits of a row depend on no other row.
"""

import cutlass
from cutlass import Float32, Int32, Int64, cute

from dsv4core_cuda.cutedsl.kernels._async import (
    barrier_expect,
    barrier_start,
    barrier_wait,
    barriers_visible,
    products_begin,
    products_end,
)
from dsv4core_cuda.cutedsl.kernels._cluster import peer, send
from dsv4core_cuda.cutedsl.kernels._numerics import choose
from dsv4core_cuda.cutedsl.kernels._ptx import (
    add,
    copies_commit,
    copies_wait,
    copy_ahead,
    fma,
    from_bits,
    load_u8,
    load_words,
    pair_bf16,
    pair_mul,
    permuted,
    read_shared,
    shared_base,
    store_words,
    write_shared,
)

SIGNS, KEPT = -0x7FFF8000, 0x07F007F0
"""Bits of pairs of bf16 that codes have: 0x80008000, and exponent and mantissa."""
GROWN = 0x7B807B80
"""2^120, twice."""
ROWS, SEGMENT = 128, 512
WARPS, CHUNKS = ROWS // 16, SEGMENT // 128


def pairs(word, zero):
    """Four e4m3 codes as two pairs of bf16, exactly; NaN reads as 480.

    A code's exponent and mantissa behind a bf16 sign are the value times 2^-120, subnormal or not.
    """
    found = [permuted(word, zero, order) for order in ("0x1404", "0x3424")]
    return [pair_mul(((x >> 4) & KEPT) | (x & Int32(SIGNS)), Int32(GROWN)) for x in found]


def operand(upper, lower, zero):
    """Steps of a product from the codes of rows r and r + 8. Shapes: 8 i32 each -> 32."""
    found = []
    for s in range(8):
        (a, c), (b, d) = pairs(upper[s], zero), pairs(lower[s], zero)
        found += [a, b, c, d]
    return found


@cute.kernel
def kernel(
    x: Int64, weight: Int64, scales: Int64, out: Int64, x_stride: Int64, tokens: Int32, inputs: Int32,
    outputs: Int32, TOKENS: cutlass.Constexpr, BLOCKS: cutlass.Constexpr, BYTES: cutlass.Constexpr,
):  # fmt: skip
    """A block: ROWS outputs from blockIdx.y * ROWS on, a SEGMENT of the inputs from blockIdx.x * SEGMENT on.

    `x_stride` in bytes. TOKENS: 8, 16, 32 or 64, of which `tokens` are there. BLOCKS: 2, 4 or 8 of a cluster.
    BYTES: scales are UE8M0, not f32.
    """
    UNITS: cutlass.Constexpr = WARPS * TOKENS // 8  # of 16 outputs and 8 tokens
    GROUP: cutlass.Constexpr = TOKENS * 128  # bytes of 64 inputs
    thread = cute.arch.thread_idx()[0]
    rank, tile, _ = cute.arch.block_idx()
    warp, lane = cute.arch.make_warp_uniform(thread // 32), thread % 32
    row, part = lane // 4, lane % 4
    operands = (shared_base() + 1023) & -1024
    sums = operands + SEGMENT // 64 * GROUP
    arrived = sums + UNITS * 512
    start, first = rank * SEGMENT, tile * ROWS

    codes = weight + Int64(first + warp * 16 + row) * inputs + Int64(start + part * 16)
    below = codes + Int64(inputs) * 8
    upper, lower = [], []
    for g in cutlass.range_constexpr(SEGMENT // 64):
        upper += load_words(codes + Int64(g * 64), 4)
        lower += load_words(below + Int64(g * 64), 4)
    factors = []
    scale = Int64(first // 128) * (inputs // 128) + Int64(start // 128)
    for i in cutlass.range_constexpr(0, CHUNKS, 2):
        if cutlass.const_expr(BYTES):
            pair = [load_u8(scales + scale + Int64(i + n)) for n in range(2)]
            pair = [cutlass.min(cutlass.max(byte, 1), 254) << 23 for byte in pair]
        else:
            pair = load_words(scales + (scale + Int64(i)) * 4, 2)
        factors += [from_bits(word) for word in pair]
    if thread == 0:
        barrier_start(arrived, 1)
        barriers_visible()
        barrier_expect(arrived, UNITS * 512)
        write_shared(arrived + 8, [Int32(0)])
    cute.arch.cluster_arrive_relaxed()
    cute.arch.sync_threads()  # all codes are asked for, before anything else is

    # 16 codes that a thread has in a row are its part of four steps: inputs 16 apart come to lie together.
    tokens_at = [warp + i * WARPS for i in range(TOKENS // WARPS)]
    inputs_at = x + Int64(start * 2 + lane * 4)
    sources = [inputs_at + Int64(cutlass.min(t, tokens - 1)) * x_stride for t in tokens_at]
    places = [operands + t * 128 + (((lane ^ t) % 8) << 4) + lane // 8 * 4 for t in tokens_at]
    for i in cutlass.range_constexpr(CHUNKS):
        for source, place in zip(sources, places, strict=True):
            for g in cutlass.range_constexpr(2 * i, 2 * i + 2):
                copy_ahead(place + g * GROUP, source + Int64(g * 128), 4)
        copies_commit()

    total = [Float32(0.0)] * (TOKENS // 2)
    zero = read_shared(arrived + 8, 1)[0]  # or a compiler makes copies wait behind codes
    steps = operand(upper[:8], lower[:8], zero)
    for i in cutlass.range_constexpr(CHUNKS):
        copies_wait(CHUNKS - 1 - i)
        cute.arch.fence_view_async_shared()
        cute.arch.sync_threads()
        address = Int64(((operands + 2 * i * GROUP) & 0x3FFFF) >> 4)
        dots = products_begin(steps, address | Int64((1 << 16) | (64 << 32) | (1 << 62)), TOKENS)
        if cutlass.const_expr(i + 1 < CHUNKS):
            steps = operand(upper[8 * i + 8 : 8 * i + 16], lower[8 * i + 8 : 8 * i + 16], zero)
        dots = products_end(dots)
        total = [fma(dot, factors[i], sum_) for dot, sum_ in zip(dots, total, strict=True)]

    cute.arch.cluster_wait()  # the others have barriers
    for j in cutlass.range_constexpr(TOKENS // 8):
        unit = j * WARPS + warp
        place = sums + ((unit // BLOCKS * BLOCKS + rank) * 32 + lane) * 16
        send(peer(place, unit % BLOCKS), total[4 * j : 4 * j + 4], peer(arrived, unit % BLOCKS))
    barrier_wait(arrived, 0)
    for i in cutlass.range_constexpr((UNITS + BLOCKS * WARPS - 1) // (BLOCKS * WARPS)):
        slot = i * WARPS + warp
        unit = slot * BLOCKS + rank
        if unit < UNITS:
            to = out + Int64(first + unit % WARPS * 16 + row // 2 * 2) * 2
            token = unit // WARPS * 8 + part * 2
            finish(sums + (slot * BLOCKS * 32 + lane) * 16, token, tokens, to, outputs, row, BLOCKS)


@cute.jit
def finish(sums, token, tokens, out, outputs, row, BLOCKS: cutlass.Constexpr):
    """Add the segments' sums of outputs `row` and `row` + 8 of two tokens, and store them.

    Of two threads with neighbouring outputs one stores both for the first token, one for the second.
    """
    found = [Float32(0.0)] * 4
    for c in cutlass.range_constexpr(BLOCKS):
        words = read_shared(sums + c * 512, 4)
        found = [add(a, from_bits(b)) for a, b in zip(found, words, strict=True)]
    odd = row % 2 == 1
    mine = [choose(Float32, odd, found[2 * i + 1], found[2 * i]) for i in range(2)]
    sent = [choose(Float32, odd, found[2 * i], found[2 * i + 1]) for i in range(2)]
    other = [cute.arch.shuffle_sync_bfly(value, 4) for value in sent]
    words = [
        pair_bf16(choose(Float32, odd, b, a), choose(Float32, odd, a, b))
        for a, b in zip(mine, other, strict=True)
    ]
    token = token + row % 2
    if token < tokens:
        for i in cutlass.range_constexpr(2):
            store_words(out + Int64(token) * outputs * 2 + Int64(i * 16), [words[i]])
