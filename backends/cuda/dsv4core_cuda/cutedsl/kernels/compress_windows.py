"""Entries of windows of 128 states: a block pools 8 segments of 64 channels side by side, two warps each."""

import cutlass
from cutlass import Float32, Int32, Int64, cute

from dsv4core_cuda.cutedsl.kernels._main_row import byte_pair, row_places, settled
from dsv4core_cuda.cutedsl.kernels._numerics import (
    across,
    choose,
    exp_nonpositive,
    inverse_rms,
    maximum,
    over_warp,
    rotate,
    unpack_bf16,
    whole_squares,
    widest,
)
from dsv4core_cuda.cutedsl.kernels._ptx import (
    add,
    bits,
    copies_commit,
    copies_wait,
    copy_ahead,
    div,
    from_bits,
    load_i32,
    load_words,
    mul,
    read_shared,
    read_shared_i64,
    shared_base,
    store_u8,
    store_u16,
    store_words,
    sub,
    wait_turn,
    write_shared,
    write_shared_i64,
)
from dsv4core_cuda.cutedsl.kernels._windows import MOST, RECORD, closing, listed, look_up, slot_and_last

RATIO, SEGMENTS, STATES, DIM = 128, 8, 16, 512
CHUNKS = DIM // 64
WARPS = 2 * SEGMENTS
STAGE = STATES * 2 * 128
"""Bytes of a warp's stage: scores and values of 32 channels of its segment."""
EXCHANGE = SEGMENTS * (2 * (256 + 512) + 8) + WARPS * 4
"""Bytes in which warps show each other maxima and sums (of two steps), squares and magnitudes."""
MINUS_INFINITY = -0x800000


def shared_bytes(stages):
    """Dynamic shared memory of a block."""
    return WARPS * (stages * STAGE + MOST * (4 * STATES + RECORD)) + EXCHANGE


@cute.jit
def fetch(stage, place, step, state):
    """Begin to copy a stage: 32 of the channels 64 c .. of a segment's states, for step 8 e + c of window e.

    A quarter of the warp has four states, 16 bytes a lane: so many go past the first-level cache.
    """
    lane, warp = cute.arch.lane_idx(), cute.arch.warp_idx()
    e = step // CHUNKS
    first, piece = lane // 8 * 4, lane % 8 * 16
    offset = Int64((step - e * CHUNKS) * 256 + (warp & 1) * 128 + piece)
    rows = read_shared(place + (e * STATES + first) * 4, 4)
    for i in cutlass.range_constexpr(4):
        to = stage + (first + i) * 256 + piece
        if rows[i] >= 0:
            source = state + (Int64(rows[i]) << 4) + offset
            copy_ahead(to, source, 16)
            copy_ahead(to + 128, source + DIM * 4, 16)
        else:
            write_shared(to, [Int32(0)] * 4)
            write_shared(to + 128, [Int32(MINUS_INFINITY)] * 4)


def column(place):
    """A thread's channel of a segment, from values or scores in shared memory."""
    at = place + cute.arch.lane_idx() * 4
    return [from_bits(read_shared(at + j * 256, 1)[0]) for j in range(STATES)]


def sums(values, scores, peak):
    """The weights of a channel's states and the weighted values, summed in order (CA1 rule 4)."""
    mass, total = Float32(0.0), Float32(0.0)
    for value, score in zip(values, scores, strict=True):
        e = exp_nonpositive(sub(score, peak))
        mass, total = add(mass, e), add(total, mul(e, value))
    return mass, total


def combined(at):
    """Two channels from the sums of all segments, in order."""
    mass, total = [Float32(0.0)] * 2, [Float32(0.0)] * 2
    for s in range(SEGMENTS):
        words = [from_bits(w) for w in read_shared(at + s * 512, 4)]
        for c in range(2):
            mass[c], total[c] = add(mass[c], words[2 * c]), add(total[c], words[2 * c + 1])
    return [div(total[c], mass[c]) for c in range(2)]


@cute.kernel
def kernel(
    state: Int64, positions: Int64, requests: Int64, slots: Int64, table: Int64, cos_sin: Int64,
    weight: Int64, cache: Int64, kv_slots: Int64, tokens: Int32, run: Int32, width: Int32,
    position_stride: Int64, request_stride: Int64, slot_stride: Int64, kv_slot_stride: Int64,
    state_stride: Int64, state_row_stride: Int64, table_stride: Int64, column_stride: Int64,
    angle_stride: Int64, page_stride: Int64, eps: Float32,
    STATE_ROWS: cutlass.Constexpr, ROWS: cutlass.Constexpr, WEIGHT_BF16: cutlass.Constexpr,
    STAGES: cutlass.Constexpr,
):  # fmt: skip
    """Each block goes through `run` tokens; strides are bytes, those of states 16 bytes.

    Warps 2 s and 2 s + 1 pool segment s, half of every 64 channels each; warp w of the first eight has
    channels 64 w .. afterwards. What warps show each other lies in two places by turns, so that one barrier a
    step is enough.
    """
    wait_turn()
    lane = cute.arch.lane_idx()
    warp = cute.arch.warp_idx()
    OWN = cutlass.const_expr(STAGES * STAGE + MOST * 4 * STATES)
    segment, channel = warp // 2, warp % 2 * 32 + lane
    base = shared_base()
    ring = base + warp * OWN
    place = ring + STAGES * STAGE
    windows = base + WARPS * OWN
    maxima = windows + WARPS * MOST * RECORD
    parts = maxima + 2 * 256 * SEGMENTS
    sizes = parts + 2 * 512 * SEGMENTS
    squares = sizes + 4 * WARPS
    first = cute.arch.block_idx()[0] * run
    end = cutlass.min(first + run, tokens)
    for t in cutlass.range(first, end, WARPS * MOST, unroll=1):
        found = closing(
            t + warp * MOST + lane, end, positions, requests, slots, kv_slots,
            (position_stride, request_stride, slot_stride, kv_slot_stride), RATIO,
        )  # fmt: skip
        if lane == 0:
            write_shared(sizes + warp * 4, [cute.arch.popc(found[4])])
        cute.arch.sync_threads()
        before, all_closed = Int32(0), Int32(0)
        for w in cutlass.range_constexpr(WARPS):
            size = read_shared(sizes + 4 * w, 1)[0]
            before = before + choose(Int32, w < warp, size, 0)
            all_closed = all_closed + size
        listed(windows + before * RECORD, found)
        cute.arch.sync_threads()
        for begin in cutlass.range(0, all_closed, MOST, unroll=1):
            count = cutlass.min(all_closed - begin, MOST)
            look_up(
                place, windows + begin * RECORD, count, (SEGMENTS - 1 - segment) * STATES, table, width,
                table_stride, column_stride, (state_stride, state_row_stride), STATE_ROWS, STATES,
            )  # fmt: skip
            steps = count * CHUNKS
            for s in cutlass.range_constexpr(STAGES - 1):
                if s < steps:
                    fetch(ring + s * STAGE, place, Int32(s), state)
                copies_commit()
            turn = Int32(0)
            for e in cutlass.range(count, unroll=1):
                target, last = slot_and_last(windows, begin + e)
                angle = cos_sin + Int64(last - (RATIO - 1)) * angle_stride + Int64(lane * 4)
                cos, sin = from_bits(load_i32(angle)), from_bits(load_i32(angle + 128))
                even, odd = Float32(0.0), Float32(0.0)
                for c in cutlass.range(CHUNKS, unroll=1):
                    copies_wait(STAGES - 2)
                    cute.arch.sync_warp()  # what other lanes copied is here, and they have read what is free
                    ahead = e * CHUNKS + c + STAGES - 1
                    free = turn - 1 if turn > 0 else Int32(STAGES - 1)
                    if ahead < steps:
                        fetch(ring + free * STAGE, place, ahead, state)
                    copies_commit()
                    stage = ring + turn * STAGE
                    scores = column(stage + 128)
                    turn = turn + 1 if turn < STAGES - 1 else Int32(0)
                    half = c & 1
                    maxima_here = maxima + half * (256 * SEGMENTS) + channel * 4
                    write_shared(maxima_here + segment * 256, [bits(maximum(scores))])
                    cute.arch.sync_threads()
                    values = column(stage)
                    if warp == c - 1:
                        even, odd = combined(parts + (1 - half) * (512 * SEGMENTS) + lane * 16)
                    shown = [from_bits(read_shared(maxima_here + s * 256, 1)[0]) for s in range(SEGMENTS)]
                    mass, total = sums(values, scores, maximum(shown))
                    mine = parts + half * (512 * SEGMENTS) + segment * 512 + channel * 8
                    write_shared(mine, [bits(mass), bits(total)])
                cute.arch.sync_threads()
                if warp == CHUNKS - 1:
                    even, odd = combined(parts + 512 * SEGMENTS + lane * 16)
                amax = across(widest([even, odd]), 32, "max")
                if warp < SEGMENTS:
                    write_shared(sizes + warp * 4, [amax])
                cute.arch.sync_threads()
                for part in cutlass.range_constexpr(2):
                    for size in read_shared(sizes + 16 * part, 4):
                        amax = cutlass.max(amax, size)
                field = cutlass.max(amax >> 23, 30)
                if warp < SEGMENTS:
                    write_shared_i64(squares + warp * 8, over_warp(whole_squares([even, odd], field)))
                cute.arch.sync_threads()
                if warp < SEGMENTS:
                    square = Int64(0)
                    for s in cutlass.range_constexpr(SEGMENTS):
                        square += read_shared_i64(squares + 8 * s)
                    inverse = inverse_rms(square, field, DIM, eps)
                    entry(even, odd, inverse, weight, cache, target, page_stride, cos, sin, ROWS, WEIGHT_BF16)
            cute.arch.sync_threads()


@cute.jit
def entry(even, odd, inverse, weight, cache, target, page_stride, cos, sin, ROWS, WEIGHT_BF16):
    """Normalise, rotate, round and store a warp's 64 channels: a group of codes, or the rotated tail."""
    lane, warp = cute.arch.lane_idx(), cute.arch.warp_idx()
    channel = Int64(warp * 64 + lane * 2)
    w = (
        unpack_bf16(load_i32(weight + channel * 2))
        if WEIGHT_BF16
        else [from_bits(x) for x in load_words(weight + channel * 4, 2)]
    )
    y = [mul(mul(even, inverse), w[0]), mul(mul(odd, inverse), w[1])]
    start, behind = row_places("fp8_ds_mla", cache, target, ROWS, page_stride)
    if warp < SEGMENTS - 1:
        values = settled(y)
        pair, byte = byte_pair(values, across(widest(values), 32, "max"))
        store_u16(start + channel, pair)
        if lane == 0:
            store_u8(behind + warp, byte)
    else:
        values = settled([*rotate(y[0], y[1], cos, sin)])
        low, high = (bits(values[0]) >> 16) & 0xFFFF, bits(values[1]) & Int32(-65536)
        store_words(start + 448 + lane * 4, [low | high])
        if lane == 0:
            store_u8(behind + 7, Int32(0))
