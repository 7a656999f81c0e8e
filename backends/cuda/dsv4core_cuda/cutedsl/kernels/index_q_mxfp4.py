"""The indexer's queries in mxfp4: a warp turns, rotates by Hadamard and quantises eight heads at a time."""

import cutlass
from cutlass import Float32, Int32, Int64, cute

from dsv4core_cuda.cutedsl.kernels._numerics import rotate, unpack_bf16
from dsv4core_cuda.cutedsl.kernels._ptx import (
    add,
    bits,
    fma,
    from_bits,
    load_bf16,
    load_i32,
    load_i64,
    load_words,
    mul,
    pair_add,
    pair_bf16,
    pair_least,
    pair_most,
    pair_mul,
    permuted,
    store_words,
    sub,
    wait_turn,
)

EACH = 0x00010001
"""A number of 16 bits times this stands in both halves of a word."""


def hadamard(x):
    """Butterflies of CA1 rule 10 over a row: lane l of four has channels 32 k + 8 l + i at x[8 k + i]."""
    lane = cute.arch.lane_idx()
    for stride in (1, 2, 4):
        x = _local(x, stride)
    for stride in (1, 2):
        sign = from_bits(Int32(0x3F800000) | ((lane & stride) << (31 if stride == 1 else 30)))
        x = [fma(y, sign, cute.arch.shuffle_sync_bfly(y, stride)) for y in x]  # the product is exact
    for stride in (8, 16):
        x = _local(x, stride)
    return [mul(y, 0.08838834764831845) for y in x]


def _local(x, stride):
    found = list(x)
    for i in range(len(x)):
        if not i & stride:
            found[i], found[i | stride] = add(x[i], x[i | stride]), sub(x[i], x[i | stride])
    return found


def halved(words):
    """The larger of the two halves of each of two words, as a pair."""
    return pair_most(permuted(*words, "0x5410"), permuted(*words, "0x7632"))


def scale_bytes(pairs):
    """UE8M0 bytes of two groups from the largest magnitudes of a row's lanes, as pairs of 16 bits.

    For bf16 bits b the smallest E with |x| <= 6 * 2^E is ((b + 63) >> 7) - 129.
    """
    found = []
    for pair in pairs:
        for lane in (1, 2):
            pair = pair_most(pair, cute.arch.shuffle_sync_bfly(pair, lane))
        pair = pair_most(pair, Int32(0x01C0 * EACH))  # 6 * 2^-126
        found.append(((pair + 0x3F * EACH) >> 7 & 0x01FF * EACH) - 2 * EACH)
    return found


def codes(pair, scale):
    """e2m1 codes of a pair of bf16: of three roundings, to halves, ones and twos, the smallest.

    A sum with 96 has the number of halves in its low bits, with 192 that of ones, with 384 that of twos.
    """
    y = pair_mul(pair, scale)
    size = y & 0x7FFF * EACH
    halves = pair_add(size, Int32(0x42C0 * EACH))
    ones = pair_add(size, Int32(0x4340 * EACH)) - (0x80 - 2) * EACH
    twos = pair_add(size, Int32(0x43C0 * EACH)) - (0x100 - 4) * EACH
    least = pair_least(pair_least(halves, ones), twos)
    return (least & 7 * EACH) | ((y >> 12) & 8 * EACH)


@cute.kernel
def kernel(
    positions: Int64, q: Int64, cos_sin: Int64, weights: Int64, values: Int64, scales: Int64, folded: Int64,
    tokens: Int32, heads: Int32, parts: Int32, position_stride: Int64, token_stride: Int64,
    head_stride: Int64, table_stride: Int64, weight_stride: Int64, softmax_scale: Float32,
    head_scale: Float32,
    HADAMARD: cutlass.Constexpr, WEIGHT_BF16: cutlass.Constexpr, WARPS: cutlass.Constexpr,
):  # fmt: skip
    """`parts` warps share a token's heads; strides are bytes. Four lanes have a row, 8 neighbours each."""
    wait_turn()
    lane = cute.arch.lane_idx()
    number = cute.arch.block_idx()[0] * WARPS + cute.arch.warp_idx()
    t = number // parts
    if t < tokens:
        four = lane & 3
        angle = cos_sin + load_i64(positions + Int64(t) * position_stride) * table_stride + Int64(four * 16)
        cos = [from_bits(w) for w in load_words(angle, 4) + load_words(angle + 64, 4)]
        sin = [from_bits(w) for w in load_words(angle + 128, 4) + load_words(angle + 192, 4)]
        base = q + Int64(t) * token_stride + Int64(four * 16)
        begin = (number - t * parts) * 8
        row = cutlass.min(begin + (lane >> 2), heads - 1)
        ahead = row_words(base, row, head_stride)
        for first in cutlass.range(begin, heads, parts * 8, unroll=1):
            h = first + (lane >> 2)
            inside = h < heads
            row = cutlass.min(h, heads - 1)
            loaded = [ahead[4 * k : 4 * k + 4] for k in range(4)]
            ahead = row_words(base, cutlass.min(h + parts * 8, heads - 1), head_stride)
            words = turned(loaded, cos, sin, HADAMARD)
            sizes = []
            for k in cutlass.range_constexpr(4):
                size = words[k][0] & 0x7FFF * EACH
                for i in cutlass.range_constexpr(1, 4):
                    size = pair_most(size, words[k][i] & 0x7FFF * EACH)
                sizes.append(size)
            found = scale_bytes([halved(sizes[:2]), halved(sizes[2:])])
            at = Int64(t) * heads + row
            if inside:
                for k in cutlass.range_constexpr(4):
                    power = (254 * EACH - found[k // 2]) << 7
                    scale = permuted(power, power, "0x1010" if k % 2 == 0 else "0x3232")
                    nibbles = [codes(words[k][i], scale) for i in range(4)]
                    word = nibbles[0] | (nibbles[1] << 4) | (nibbles[2] << 8) | (nibbles[3] << 12)
                    store_words(values + at * 64 + Int64(k * 16 + four * 4), [word])
                if four == 0:
                    store_words(scales + at * 4, [permuted(found[0], found[1], "0x6420")])
                    place = weights + Int64(t) * weight_stride
                    w = Float32(0.0)
                    if cutlass.const_expr(WEIGHT_BF16):
                        w = load_bf16(place + Int64(row) * 2)
                    else:
                        w = from_bits(load_i32(place + Int64(row) * 4))
                    store_words(folded + at * 4, [bits(mul(mul(w, softmax_scale), head_scale))])


def row_words(base, row, stride):
    """A lane's words of a row: 16 bytes of each 64."""
    return [word for k in range(4) for word in load_words(base + Int64(row) * stride + 64 * k, 4)]


def turned(loaded, cos, sin, HADAMARD):
    """A lane's four blocks of 8 channels on the bf16 grid, channels i and i + 4 of a block in word i."""
    x = []
    for k in range(4):
        pairs = [unpack_bf16(word) for word in loaded[k]]
        if k >= 2:
            angles = [(cos[4 * (k - 2) + p], sin[4 * (k - 2) + p]) for p in range(4)]
            pairs = [rotate(*pair, *angle) for pair, angle in zip(pairs, angles, strict=True)]
            if HADAMARD:
                pairs = [unpack_bf16(pair_bf16(*pair)) for pair in pairs]
        x += [y for pair in pairs for y in pair]
    if HADAMARD:
        x = hadamard(x)
    return [[pair_bf16(x[8 * k + i], x[8 * k + i + 4]) for i in range(4)] for k in range(4)]
