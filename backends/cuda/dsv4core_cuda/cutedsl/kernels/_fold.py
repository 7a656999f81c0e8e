"""What the blocks of a cluster do with each other's sums and outputs. Shared addresses are i32."""

import cutlass
from cutlass import Float32, Int32, Int64, cute

from dsv4core_cuda.cutedsl.kernels._cluster import exp2, peer, read_peer
from dsv4core_cuda.cutedsl.kernels._listed_rows import load_word
from dsv4core_cuda.cutedsl.kernels._ptx import (
    bits,
    from_bits,
    pair_bf16,
    read_shared,
    store_words,
    write_shared,
)

LOG2E = 1.4426950408889634
LN2 = 0.6931471805599453
SUMS = 3
"""What a block says of a head: its running maximum, the sum of its weights as rounded and as they were."""


def read_f32(address, n):
    """n (1, 2 or 4) f32 from shared memory."""
    return [from_bits(x) for x in read_shared(address, n)]


@cute.jit
def shares(ml, weights, sink, h, HEADS: cutlass.Constexpr, BLOCKS: cutlass.Constexpr):
    """What maxima and sums of head h in the cluster's blocks make of their outputs: factors to `weights`.

    A power of two for every block, then the share of the whole sum, of the weights as they were rounded: that
    is what outputs hold. -> natural log of the sum without sink, of weights as they were.
    """
    HALF: cutlass.Constexpr = (BLOCKS + 1) // 2
    found = [[read_f32(ml + ((c * SUMS + i) * HEADS + h) * 4, 1)[0] for i in range(SUMS)] for c in range(BLOCKS)]
    top = found[0][0]
    for c in cutlass.range_constexpr(1, BLOCKS):
        top = cute.arch.fmax(top, found[c][0])
    rounded, exact = [Float32(0.0), Float32(0.0)], [Float32(0.0), Float32(0.0)]
    for c in cutlass.range_constexpr(BLOCKS):
        part = exp2(found[c][0] - top)
        write_shared(weights + (c * HEADS + h) * 4, [bits(part)])
        rounded[c // HALF] = rounded[c // HALF] + part * found[c][1]
        exact[c // HALF] = exact[c // HALF] + part * found[c][2]
    whole, true = rounded[0] + rounded[1], exact[0] + exact[1]
    share, natural = Float32(0.0), Float32.inf
    if whole > 0.0:
        share = 1.0 / (whole + exp2(from_bits(load_word(sink)) * LOG2E - top))
        natural = (top + cute.math.log2(true)) * LN2
    write_shared(weights + (BLOCKS * HEADS + h) * 4, [bits(share)])
    return natural


@cute.jit
def add_blocks(
    outputs, weights, to, head_stride, thread, rank,
    HEADS: cutlass.Constexpr, BLOCKS: cutlass.Constexpr, THREADS: cutlass.Constexpr, HEAD: cutlass.Constexpr,
):  # fmt: skip
    """Add what the cluster's blocks have for this one's part of the channels: halves in order, then both."""
    HALF: cutlass.Constexpr = (BLOCKS + 1) // 2
    UNITS: cutlass.Constexpr = HEADS * 128
    ROUNDS: cutlass.Constexpr = (UNITS + THREADS * BLOCKS - 1) // (THREADS * BLOCKS)
    AT_ONCE: cutlass.Constexpr = max(1, 10 // BLOCKS)
    bases = [peer(outputs, c) for c in range(BLOCKS)]
    for first in cutlass.range_constexpr(0, ROUNDS, AT_ONCE):
        units = [thread + THREADS * (rank + BLOCKS * i) for i in range(first, min(first + AT_ONCE, ROUNDS))]
        places = [(unit % UNITS // 128, unit % 128 * 4) for unit in units]
        there = [Int32(unit < UNITS) for unit in units]
        # loads of several units are under way at once
        loaded = [
            [read_peer(base + (h * HEAD + c) * 4, p) for base in bases]
            for (h, c), p in zip(places, there, strict=True)
        ]
        for unit, (head, channel), values in zip(units, places, loaded, strict=True):
            halves = [[Float32(0.0)] * 4, [Float32(0.0)] * 4]
            for c in cutlass.range_constexpr(BLOCKS):
                weight = read_f32(weights + (c * HEADS + head) * 4, 1)[0]
                half = halves[c // HALF]
                halves[c // HALF] = [a + b * weight for a, b in zip(half, values[c], strict=True)]
            share = read_f32(weights + (BLOCKS * HEADS + head) * 4, 1)[0]
            x = [(a + b) * share for a, b in zip(*halves, strict=True)]
            words = [pair_bf16(x[0], x[1]), pair_bf16(x[2], x[3])]
            if unit < UNITS:
                store_words(to + (Int64(head) * head_stride + channel) * 2, words)
