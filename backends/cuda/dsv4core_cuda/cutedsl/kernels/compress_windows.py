"""Entries of windows of 128 states: a block pools 8 segments side by side, 64 channels at a time."""

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
STAGE = STATES * 2 * 256
"""Bytes of a warp's stage: scores and values of 64 channels of its segment."""
EXCHANGE = SEGMENTS * (2 * (256 + 512) + 4 + 8)
"""Bytes in which warps show each other maxima and sums (of two steps), magnitudes and squares."""
MINUS_INFINITY = -0x800000


def shared_bytes(stages):
    """Dynamic shared memory of a block."""
    return SEGMENTS * (stages * STAGE + MOST * (4 * STATES + RECORD)) + EXCHANGE


@cute.jit
def fetch(stage, place, step, state):
    """Begin to copy a stage: channels 64 c .. of a segment's states of window e, for step 8 e + c."""
    lane = cute.arch.lane_idx()
    e = step // CHUNKS
    offset = Int64((step - e * CHUNKS) * 256 + lane * 8)
    for part in cutlass.range_constexpr(STATES // 4):
        rows = read_shared(place + (e * STATES + 4 * part) * 4, 4)
        for i in cutlass.range_constexpr(4):
            to = stage + (4 * part + i) * 512 + lane * 8
            if rows[i] >= 0:
                source = state + (Int64(rows[i]) << 4) + offset
                copy_ahead(to, source, 8)
                copy_ahead(to + 256, source + DIM * 4, 8)
            else:
                write_shared(to, [Int32(0)] * 2)
                write_shared(to + 256, [Int32(MINUS_INFINITY)] * 2)


def columns(place):
    """A thread's two channels of a segment, from values or scores in shared memory."""
    at = place + cute.arch.lane_idx() * 8
    pairs = [read_shared(at + j * 512, 2) for j in range(STATES)]
    return [[from_bits(pair[c]) for pair in pairs] for c in range(2)]


def sums(values, scores, peak):
    """The weights of a channel's states and the weighted values, summed in order (CA1 rule 4)."""
    mass, total = Float32(0.0), Float32(0.0)
    for value, score in zip(values, scores, strict=True):
        e = exp_nonpositive(sub(score, peak))
        mass, total = add(mass, e), add(total, mul(e, value))
    return mass, total


def combined(at):
    """A thread's two channels from the sums of all segments, in order."""
    mass, total = [Float32(0.0)] * 2, [Float32(0.0)] * 2
    for s in range(SEGMENTS):
        words = [from_bits(w) for w in read_shared(at + s * 512, 4)]
        for c in range(2):
            mass[c], total[c] = add(mass[c], words[c]), add(total[c], words[2 + c])
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

    Warp w pools segment w of every 64 channels, and is the one that has channels 64 w .. afterwards. What it
    shows the others lies in two places by turns, so that one barrier a step is enough.
    """
    wait_turn()
    lane = cute.arch.lane_idx()
    warp = cute.arch.warp_idx()
    OWN = cutlass.const_expr(STAGES * STAGE + MOST * 4 * STATES)
    base = shared_base()
    ring = base + warp * OWN
    place = ring + STAGES * STAGE
    windows = base + SEGMENTS * OWN
    maxima = windows + SEGMENTS * MOST * RECORD
    parts = maxima + 2 * 256 * SEGMENTS
    sizes = parts + 2 * 512 * SEGMENTS
    squares = sizes + 4 * SEGMENTS
    first = cute.arch.block_idx()[0] * run
    end = cutlass.min(first + run, tokens)
    for t in cutlass.range(first, end, SEGMENTS * MOST, unroll=1):
        found = closing(
            t + warp * MOST + lane, end, positions, requests, slots, kv_slots,
            (position_stride, request_stride, slot_stride, kv_slot_stride), RATIO,
        )  # fmt: skip
        if lane == 0:
            write_shared(sizes + warp * 4, [cute.arch.popc(found[4])])
        cute.arch.sync_threads()
        before, all_closed = Int32(0), Int32(0)
        for w in cutlass.range_constexpr(SEGMENTS):
            size = read_shared(sizes + 4 * w, 1)[0]
            before = before + choose(Int32, w < warp, size, 0)
            all_closed = all_closed + size
        listed(windows + before * RECORD, found)
        cute.arch.sync_threads()
        for begin in cutlass.range(0, all_closed, MOST, unroll=1):
            count = cutlass.min(all_closed - begin, MOST)
            look_up(
                place, windows + begin * RECORD, count, (SEGMENTS - 1 - warp) * STATES, table, width,
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
                    ahead = e * CHUNKS + c + STAGES - 1
                    free = turn - 1 if turn > 0 else Int32(STAGES - 1)
                    if ahead < steps:
                        fetch(ring + free * STAGE, place, ahead, state)
                    copies_commit()
                    stage = ring + turn * STAGE
                    scores = columns(stage + 256)
                    turn = turn + 1 if turn < STAGES - 1 else Int32(0)
                    half = c & 1
                    maxima_here = maxima + half * (256 * SEGMENTS) + lane * 8
                    write_shared(maxima_here + warp * 256, [bits(maximum(column)) for column in scores])
                    cute.arch.sync_threads()
                    values = columns(stage)
                    if warp == c - 1:
                        even, odd = combined(parts + (1 - half) * (512 * SEGMENTS) + lane * 16)
                    shown = [read_shared(maxima_here + s * 256, 2) for s in range(SEGMENTS)]
                    peak = [maximum([from_bits(pair[i]) for pair in shown]) for i in range(2)]
                    parted = [sums(values[i], scores[i], peak[i]) for i in range(2)]
                    words = [bits(parted[i][part]) for part in range(2) for i in range(2)]
                    write_shared(parts + half * (512 * SEGMENTS) + warp * 512 + lane * 16, words)
                cute.arch.sync_threads()
                if warp == CHUNKS - 1:
                    even, odd = combined(parts + 512 * SEGMENTS + lane * 16)
                amax = across(widest([even, odd]), 32, "max")
                write_shared(sizes + warp * 4, [amax])
                cute.arch.sync_threads()
                for part in cutlass.range_constexpr(2):
                    for size in read_shared(sizes + 16 * part, 4):
                        amax = cutlass.max(amax, size)
                field = cutlass.max(amax >> 23, 30)
                write_shared_i64(squares + warp * 8, over_warp(whole_squares([even, odd], field)))
                cute.arch.sync_threads()
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
