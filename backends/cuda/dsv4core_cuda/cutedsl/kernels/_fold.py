"""What the blocks of a cluster do with each other's sums and outputs. Shared addresses are i32."""

import cutlass
from cutlass import Float32, Int32, Int64, cute

from dsv4core_cuda.cutedsl.kernels._cluster import exp2, peer, read_peer
from dsv4core_cuda.cutedsl.kernels._listed_rows import load_word
from dsv4core_cuda.cutedsl.kernels._numerics import choose
from dsv4core_cuda.cutedsl.kernels._ptx import (
    bits,
    from_bits,
    pair_bf16,
    permuted,
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
    found = [
        [read_f32(ml + ((c * SUMS + i) * HEADS + h) * 4, 1)[0] for i in range(SUMS)] for c in range(BLOCKS)
    ]
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
    read, weights, to, thread, rank,
    HEADS: cutlass.Constexpr, BLOCKS: cutlass.Constexpr, THREADS: cutlass.Constexpr,
):  # fmt: skip
    """Add what the cluster's blocks have for this one's part of the channels: halves in order, then both.

    `read` is where they lie, a `Whole` or a `Packed`; `to` what is stored of them and where, `Rows` or
    `_turned.Turned`. A thread's units are the same channels of several heads, a warp's are 128 of one head.
    """
    HALF: cutlass.Constexpr = (BLOCKS + 1) // 2
    UNITS: cutlass.Constexpr = HEADS * 128
    ROUNDS: cutlass.Constexpr = (UNITS + THREADS * BLOCKS - 1) // (THREADS * BLOCKS)
    AT_ONCE: cutlass.Constexpr = max(1, 10 // BLOCKS)
    for first in cutlass.range_constexpr(0, ROUNDS, AT_ONCE):
        units = [thread + THREADS * (rank + BLOCKS * i) for i in range(first, min(first + AT_ONCE, ROUNDS))]
        there = [Int32(unit < UNITS) for unit in units]
        heads = [unit % UNITS // 128 for unit in units]
        # loads of several units are under way at once
        loaded = [
            [read.words(c, h, unit % 128, p) for c in range(BLOCKS)]
            for unit, h, p in zip(units, heads, there, strict=True)
        ]
        for unit, head, found in zip(units, heads, loaded, strict=True):
            halves = [[Float32(0.0)] * 4, [Float32(0.0)] * 4]
            for c in cutlass.range_constexpr(BLOCKS):
                weight = read_f32(weights + (c * HEADS + head) * 4, 1)[0]
                half, values = halves[c // HALF], read.values(found[c])
                halves[c // HALF] = [a + b * weight for a, b in zip(half, values, strict=True)]
            share = read_f32(weights + (BLOCKS * HEADS + head) * 4, 1)[0]
            x = [(a + b) * share for a, b in zip(*halves, strict=True)]
            stores = to.stores(read, head, unit, x)
            if unit < UNITS:
                for place, words in stores:
                    store_words(place, words)
            to.put_scale(head, unit, unit < UNITS)


class Rows:
    """Outputs as bf16: 512 channels of a head from `out` on, `stride` elements from one head to the next."""

    def __init__(self, out, stride):
        self.out, self.stride = out, stride

    def stores(self, read, head, unit, x):
        """What is stored of a unit's four outputs, and where."""
        at = self.out + Int64(head) * self.stride * 2
        return read.stores(at, unit % 128, pair_bf16(x[0], x[1]), pair_bf16(x[2], x[3]))

    def put_scale(self, head, unit, there):
        """There is none."""


class Whole:
    """Outputs as f32, HEAD words from one head to the next: unit i has channels 4 i to 4 i + 3."""

    HEAD = 516
    """A warp's stores meet no bank twice."""

    def __init__(self, outputs, blocks):
        self.bases = [peer(outputs, c) for c in range(blocks)]

    def words(self, block, head, unit, there):
        """What a block has of a unit, or zeros."""
        return read_peer(self.bases[block] + (head * self.HEAD + unit * 4) * 4, 4, there)

    def values(self, words):
        """The unit's outputs."""
        return [from_bits(w) for w in words]

    def stores(self, to, unit, low, high):
        """Where in a head's row at `to` the unit's two pairs of bf16 go."""
        return [(to + unit * 8, [low, high])]

    def in_order(self, low, high, unit):
        """Codes of the unit's two pairs, in a thread each of a warp, as words in the order of channels."""
        return low | (high << 16)

    def pairs(self, unit):
        """Which of the last 64 channels' pairs the unit of the last 16 has."""
        return [unit * 2, unit * 2 + 1]


class Packed:
    """Outputs as 24 bits, four in three words: what the cluster carries is what takes longest.

    Unit i has channels c, c + 1, c + 8 and c + 9 of 16, which one thread of a matrix product has.
    """

    PAIRS, SINGLES = 264, 132
    """Words from one head to the next of the first two words and of the third: no bank is met twice."""

    def __init__(self, outputs, blocks, heads):
        self.behind = heads * self.PAIRS * 4
        self.outputs = outputs
        self.bases = [peer(outputs, c) for c in range(blocks)]

    def put(self, head, unit, a, b, c, d):
        """Write a unit, each value rounded to 16 bits behind the first one."""
        a, b, c, d = [bits(x) + 0x80 for x in (a, b, c, d)]
        words = [permuted(x, d, f"0x321{7 - i}") for i, x in enumerate((a, b, c))]
        write_shared(self.outputs + (head * self.PAIRS + unit * 2) * 4, words[:2])
        write_shared(self.outputs + self.behind + (head * self.SINGLES + unit) * 4, words[2:])

    def words(self, block, head, unit, there):
        """What a block has of a unit, or zeros."""
        two = read_peer(self.bases[block] + (head * self.PAIRS + unit * 2) * 4, 2, there)
        return two + read_peer(self.bases[block] + self.behind + (head * self.SINGLES + unit) * 4, 1, there)

    def values(self, words):
        """The unit's outputs."""
        last = permuted(permuted(words[1], words[0], "0x4000"), words[2], "0x3244")
        return [from_bits(w & Int32(-0x100)) for w in (*words, last)]

    def stores(self, to, unit, low, high):
        """Where in a head's row at `to` the unit's two pairs of bf16 go."""
        at = to + (unit // 4 * 16 + unit % 4 * 2) * 2
        return [(at, [low]), (at + 16, [high])]

    def in_order(self, low, high, unit):
        """Codes of the unit's two pairs, in a thread each of a warp, as words in the order of channels."""
        word, of_both = low | (high << 16), unit % 32 & ~3 | unit % 2 * 2
        first, second = [cute.arch.shuffle_sync(word, of_both + i) for i in range(2)]
        return choose(
            Int32, unit % 4 < 2, permuted(first, second, "0x5410"), permuted(first, second, "0x7632")
        )

    def pairs(self, unit):
        """Which of the last 64 channels' pairs the unit of the last 16 has."""
        first = unit // 4 * 8 + unit % 4
        return [first, first + 4]
