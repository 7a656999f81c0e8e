"""Query heads normalised and turned, keys turned and inserted: a warp has a row."""

import cutlass
from cutlass import Float32, Int32, Int64, cute

from dsv4core_cuda.cutedsl.kernels._key_row import largest, store_row
from dsv4core_cuda.cutedsl.kernels._numerics import (
    across,
    choose,
    inverse_rms,
    over_warp,
    rotate,
    unpack_bf16,
    whole_squares,
)
from dsv4core_cuda.cutedsl.kernels._ptx import (
    from_bits,
    load_i64,
    load_words,
    mul,
    pair_bf16,
    store_words,
    wait_turn,
)


def angles(cos_sin, position, stride):
    """Cosines and sines of a lane's four pairs, which are those of the last 64 channels in lanes 24 .. 31."""
    place = cos_sin + position * stride + Int64((cute.arch.lane_idx() & 7) * 16)
    return [[from_bits(w) for w in load_words(place + part, 4)] for part in (0, 128)]


def halves(words):
    """The values of words of two bf16."""
    return [y for word in words for y in unpack_bf16(word)]


def turned(y, cos, sin):
    """Eight values turned in pairs."""
    return [x for p in range(4) for x in rotate(y[2 * p], y[2 * p + 1], cos[p], sin[p])]


def rounded(values):
    """Values as words of two bf16."""
    return [pair_bf16(values[i], values[i + 1]) for i in range(0, len(values), 2)]


@cute.kernel
def kernel(
    q: Int64, kv: Int64, positions: Int64, cos_sin: Int64, cache: Int64, slots: Int64, out: Int64,
    tokens: Int32, count: Int32, key_blocks: Int32, heads: Int32, padded: Int32, q_stride: Int64,
    head_stride: Int64, kv_stride: Int64, position_stride: Int64, table_stride: Int64, page_stride: Int64,
    slot_stride: Int64, eps: Float32,
    ROWS: cutlass.Constexpr, AT_ONCE: cutlass.Constexpr, WARPS: cutlass.Constexpr,
):  # fmt: skip
    """The first `key_blocks` blocks insert a key a warp, the others take AT_ONCE heads a warp.

    Strides are bytes. Heads behind `heads` become +0; a negative slot writes nothing.
    """
    wait_turn()
    lane = cute.arch.lane_idx()
    block = cute.arch.block_idx()[0]
    if block < key_blocks:
        t = block * WARPS + cute.arch.warp_idx()
        if t < count:
            slot = load_i64(slots + Int64(t) * slot_stride)
            if slot >= 0:
                row = kv + Int64(t) * kv_stride + lane * 16
                first, second = load_words(row, 4), load_words(row + 512, 4)
                cos, sin = angles(cos_sin, load_i64(positions + Int64(t) * position_stride), table_stride)
                tail = rounded(turned(halves(second), cos, sin))
                second = [choose(Int32, lane < 24, a, b) for a, b in zip(second, tail, strict=True)]
                store_row(first, second, slot, cache, page_stride, ROWS)
    else:
        begin = ((block - key_blocks) * WARPS + cute.arch.warp_idx()) * AT_ONCE
        loaded = []
        for i in cutlass.range_constexpr(AT_ONCE):
            t = cutlass.min((begin + i) // padded, tokens - 1)
            h = begin + i - t * padded
            start = q + Int64(t) * q_stride + Int64(cutlass.min(h, heads - 1)) * head_stride + lane * 16
            words = load_words(start, 4) + load_words(start + 512, 4)
            loaded.append((words, h, load_i64(positions + Int64(t) * position_stride)))
        turns = [angles(cos_sin, loaded[i][2], table_stride) for i in range(AT_ONCE)]
        for i in cutlass.range_constexpr(AT_ONCE):
            words, h, _ = loaded[i]
            cos, sin = turns[i]
            if (begin + i) < tokens * padded:
                pair = largest(words)
                amax = across(cutlass.max(pair & 0x7FFF, pair >> 16) << 16, 32, "max")
                field = cutlass.max(amax >> 23, 30)
                y = halves(words)
                inverse = inverse_rms(over_warp(whole_squares(y, field)), field, 512, eps)
                y = [mul(x, inverse) for x in y]
                tail = rounded(turned(y[8:], cos, sin))
                done = rounded(y)
                done = done[:4] + [choose(Int32, lane < 24, done[4 + k], tail[k]) for k in range(4)]
                done = [choose(Int32, h < heads, word, 0) for word in done]
                target = out + Int64(begin + i) * 1024 + lane * 16
                store_words(target, done[:4])
                store_words(target + 512, done[4:])
