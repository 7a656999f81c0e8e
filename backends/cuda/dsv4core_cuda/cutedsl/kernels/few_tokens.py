"""Products of few tokens with e4m3 weights in 128 x 128 blocks: the inputs are split over a cluster.

A block has ROWS outputs, all tokens and a SEGMENT of the inputs, and asks for all of it at once, in groups of
copies to shared memory; a thread copies the very codes that it multiplies. While codes of 128 inputs become
bf16, those before are multiplied and those behind are on their way; sums are scaled by block in f32. Then the
blocks send each other their sums and each adds, in the order of the segments, those of its share of the
outputs. The cut depends on the shape of the weight alone, so the bits of a row depend on no other row.
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
    pair_bf16,
    pair_mul,
    permuted,
    read_shared,
    shared_base,
    store_words,
)

GROWN = 0x7B807B80
"""2^120, twice."""
ROWS, SEGMENT = 128, 512
WARPS, CHUNKS = ROWS // 16, SEGMENT // 128
PARTS = 64 * ROWS // 16  # of 16 codes, of 64 inputs
ORDER = ("c0 t0 t1 t2 t3", "c1", "c2", "c3")
"""Groups of copies in the order in which they are asked for: codes and tokens of the n-th 128 inputs."""


def pairs(word):
    """Four e4m3 codes as two pairs of bf16, exactly; NaN reads as 480.

    A code's exponent and mantissa behind a bf16 sign are the value times 2^-120, subnormal or not.
    Its sign and upper three bits are one byte of that, the lower four the other.
    """
    high = ((word >> 4) & 0x07070707) | (word & Int32(-0x7F7F7F80))
    low = (word << 4) & Int32(-0x0F0F0F10)
    return [pair_mul(permuted(low, high, order), Int32(GROWN)) for order in ("0x5140", "0x7362")]


def operand(place):
    """Steps of a product from a thread's codes of 128 inputs in shared memory: 32 i32.

    A `place` has the codes of row r, PARTS / 2 places on are those of r + 8, PARTS on of the next 64 inputs.
    """
    found = []
    for g in range(2):
        upper, lower = (read_shared(place + (g * PARTS + half * PARTS // 2) * 16, 4) for half in range(2))
        for s in range(4):
            (a, c), (b, d) = pairs(upper[s]), pairs(lower[s])
            found += [a, b, c, d]
    return found


def groups_with(copies):
    """How many groups of copies have to be there for some to be."""
    return next(i for i, group in enumerate(ORDER) if copies in group) + 1


def wait_for(copies, done):
    """Wait for copies, where `done` groups are there already: how many are there now."""
    if groups_with(copies) > done:
        copies_wait(len(ORDER) - groups_with(copies))
    return max(groups_with(copies), done)


def block_scales(place, byte):
    """The scales of a block's parts of 128 inputs, from shared memory."""
    if not byte:
        return [from_bits(word) for word in read_shared(place, CHUNKS)]
    (word,) = read_shared(place, 1)
    codes = [(word >> (8 * i)) & 255 for i in range(CHUNKS)]
    return [from_bits(cutlass.min(cutlass.max(code, 1), 254) << 23) for code in codes]


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
    held = operands + SEGMENT // 64 * GROUP
    sums = held + SEGMENT * ROWS
    arrived = sums + UNITS * 512
    start, first = rank * SEGMENT, tile * ROWS

    # 16 codes that a thread has in a row are its part of four steps: inputs 16 apart come to lie together.
    codes = weight + Int64(first + warp * 16 + row) * inputs + Int64(start + part * 16)
    below, held = codes + Int64(inputs) * 8, held + thread * 16
    tokens_at = [warp + i * WARPS for i in range(TOKENS // WARPS)]
    inputs_at = x + Int64(start * 2 + lane * 4)
    sources = [inputs_at + Int64(cutlass.min(t, tokens - 1)) * x_stride for t in tokens_at]
    places = [operands + t * 128 + (((lane ^ t) % 8) << 4) + lane // 8 * 4 for t in tokens_at]
    scale = Int64(first // 128) * (inputs // 128) + Int64(start // 128)
    copy_ahead(arrived + 16, scales + (scale if BYTES else scale * 4), 4 if BYTES else 16)  # by every thread
    for group in ORDER:
        for kind, i in group.split():
            for g in range(2 * int(i), 2 * int(i) + 2):
                if kind == "c":
                    copy_ahead(held + g * PARTS * 16, codes + Int64(g * 64), 16)
                    copy_ahead(held + (g * PARTS + PARTS // 2) * 16, below + Int64(g * 64), 16)
                else:
                    for source, place in zip(sources, places, strict=True):
                        copy_ahead(place + g * GROUP, source + Int64(g * 128), 4)
        copies_commit()

    if thread == 0:
        barrier_start(arrived, 1)
        barriers_visible()
        barrier_expect(arrived, UNITS * 512)
    cute.arch.cluster_arrive_relaxed()

    total, factors = [Float32(0.0)] * (TOKENS // 2), []
    done, visible = wait_for("c0", 0), 0
    steps = operand(held)
    for i in cutlass.range_constexpr(CHUNKS):
        done = wait_for(f"t{i}", done)
        if cutlass.const_expr(groups_with(f"t{i}") > visible):
            cute.arch.fence_view_async_shared()
            cute.arch.sync_threads()
            visible = done
        if cutlass.const_expr(i == 0):
            factors = block_scales(arrived + 16, BYTES)
        address = Int64(((operands + 2 * i * GROUP) & 0x3FFFF) >> 4)
        dots = products_begin(steps, address | Int64((1 << 16) | (64 << 32) | (1 << 62)), TOKENS)
        if cutlass.const_expr(i + 1 < CHUNKS):
            done = wait_for(f"c{i + 1}", done)
            steps = operand(held + (i + 1) * 2 * PARTS * 16)
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
