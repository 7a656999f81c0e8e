"""Entries of overlapping windows (ratio 4): a warp pools 8 states, normalises, rotates and stores."""

import cutlass
from cutlass import Float32, Int32, Int64, cute

from dsv4core_cuda.cutedsl.kernels._index_row import hadamard, store_index_row
from dsv4core_cuda.cutedsl.kernels._main_row import row_places, settled, store_main_row
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
    load_words,
    mul,
    read_shared,
    shared_base,
    sub,
    wait_turn,
    write_shared,
)
from dsv4core_cuda.cutedsl.kernels._windows import MOST, RECORD, closing, listed, look_up, slot_and_last

RATIO, WINDOW = 4, 8
STAGE = WINDOW * 2 * 512
"""Bytes of a stage: scores and values of 128 channels of a window."""
LIST = MOST * (4 * WINDOW + RECORD)
"""Bytes in which a warp lists windows: the places of their states, and what they are."""
MINUS_INFINITY = -0x800000


def shared_bytes(dim, stages, warps):
    """Dynamic shared memory of a block."""
    return warps * (stages * STAGE + LIST + dim * 4)


@cute.jit
def fetch(stage, place, step, state, DIM):
    """Begin to copy a stage: channels 128 c .. of window e, for step e * (DIM / 128) + c."""
    lane = cute.arch.lane_idx()
    CHUNKS = cutlass.const_expr(DIM // 128)
    e = step // CHUNKS
    offset = Int64((step - e * CHUNKS) * 512 + lane * 16)
    rows = read_shared(place + e * WINDOW * 4, 4) + read_shared(place + e * WINDOW * 4 + 16, 4)
    for j in cutlass.range_constexpr(WINDOW):
        to = stage + j * 1024 + lane * 16
        if rows[j] >= 0:
            source = state + (Int64(rows[j]) << 4) + offset + (DIM * 4 if j >= RATIO else 0)
            copy_ahead(to, source, 16)
            copy_ahead(to + 512, source + DIM * 8, 16)
        else:
            write_shared(to, [Int32(0)] * 4)
            write_shared(to + 512, [Int32(MINUS_INFINITY)] * 4)


def pooled(stage):
    """Softmax-weighted sums of a thread's four channels over a stage (CA1 rule 4), in order."""
    lane = cute.arch.lane_idx()
    values, scores = [], []
    for j in range(WINDOW):
        values.append([from_bits(w) for w in read_shared(stage + j * 1024 + lane * 16, 4)])
        scores.append([from_bits(w) for w in read_shared(stage + j * 1024 + 512 + lane * 16, 4)])
    found = []
    for c in range(4):
        peak = maximum([scores[j][c] for j in range(WINDOW)])
        mass, total = Float32(0.0), Float32(0.0)
        for j in range(WINDOW):
            e = exp_nonpositive(sub(scores[j][c], peak))
            mass = add(mass, e)
            total = add(total, mul(e, values[j][c]))
        found.append(div(total, mass))
    return found


@cute.kernel
def kernel(
    state: Int64, positions: Int64, requests: Int64, slots: Int64, table: Int64, cos_sin: Int64,
    weight: Int64, cache: Int64, kv_slots: Int64, tokens: Int32, run: Int32, width: Int32,
    position_stride: Int64, request_stride: Int64, slot_stride: Int64, kv_slot_stride: Int64,
    state_stride: Int64, state_row_stride: Int64, table_stride: Int64, column_stride: Int64,
    angle_stride: Int64, page_stride: Int64, eps: Float32,
    DIM: cutlass.Constexpr, LAYOUT: cutlass.Constexpr, STATE_ROWS: cutlass.Constexpr, ROWS: cutlass.Constexpr,
    WEIGHT_BF16: cutlass.Constexpr, STAGES: cutlass.Constexpr, WARPS: cutlass.Constexpr,
):  # fmt: skip
    """Each warp goes through `run` tokens, 32 at a time; strides are bytes, those of states 16 bytes.

    Copies run STAGES - 1 stages ahead of what is pooled; a thread copies what it reads itself, so that no
    thread waits for another.
    """
    wait_turn()
    lane = cute.arch.lane_idx()
    warp = cute.arch.warp_idx()
    CHUNKS = cutlass.const_expr(DIM // 128)
    OWN = cutlass.const_expr(STAGES * STAGE + LIST + DIM * 4)
    ring = shared_base() + warp * OWN
    place, kept = ring + STAGES * STAGE, ring + STAGES * STAGE + LIST + lane * 16
    windows = place + MOST * 4 * WINDOW
    first = (cute.arch.block_idx()[0] * WARPS + warp) * run
    end = cutlass.min(first + run, tokens)
    for t in cutlass.range(first, end, 32, unroll=1):
        found = closing(
            t + lane, end, positions, requests, slots, kv_slots,
            (position_stride, request_stride, slot_stride, kv_slot_stride), RATIO,
        )  # fmt: skip
        count = listed(windows, found)
        cute.arch.sync_warp()
        look_up(
            place, windows, count, 0, table, width, table_stride, column_stride,
            (state_stride, state_row_stride), STATE_ROWS, WINDOW,
        )  # fmt: skip
        steps = count * CHUNKS
        for s in cutlass.range_constexpr(STAGES - 1):
            if s < steps:
                fetch(ring + s * STAGE, place, Int32(s), state, DIM)
            copies_commit()
        turn = Int32(0)
        for e in cutlass.range(count, unroll=1):
            target, last = slot_and_last(windows, e)
            angle = cos_sin + Int64(last - (RATIO - 1)) * angle_stride + Int64((lane & 15) * 8)
            cos, sin = load_words(angle, 2), load_words(angle + 128, 2)
            amax = Int32(0)
            for c in cutlass.range(CHUNKS, unroll=1):
                copies_wait(STAGES - 2)
                ahead = e * CHUNKS + c + STAGES - 1
                free = turn - 1 if turn > 0 else Int32(STAGES - 1)
                if ahead < steps:
                    fetch(ring + free * STAGE, place, ahead, state, DIM)
                copies_commit()
                y = pooled(ring + turn * STAGE)
                amax = cutlass.max(amax, widest(y))
                write_shared(kept + c * 512, [bits(x) for x in y])
                turn = turn + 1 if turn < STAGES - 1 else Int32(0)
            entry(
                kept, amax, weight, cache, target, page_stride, cos, sin, eps, DIM, LAYOUT, ROWS, WEIGHT_BF16
            )  # fmt: skip
        cute.arch.sync_warp()


@cute.jit
def entry(kept, amax, weight, cache, target, page_stride, cos, sin, eps, DIM, LAYOUT, ROWS, WEIGHT_BF16):
    """Normalise, rotate, round and store one entry whose pooled channels lie at `kept`."""
    lane = cute.arch.lane_idx()
    CHUNKS = cutlass.const_expr(DIM // 128)
    y = []
    for c in cutlass.range_constexpr(CHUNKS):
        y += [from_bits(w) for w in read_shared(kept + c * 512, 4)]
    field = cutlass.max(across(amax, 32, "max") >> 23, 30)
    inverse = inverse_rms(over_warp(whole_squares(y, field)), field, DIM, eps)
    for c in cutlass.range_constexpr(CHUNKS):
        w = weights(weight, c * 128 + lane * 4, WEIGHT_BF16)
        for i in cutlass.range_constexpr(4):
            y[4 * c + i] = mul(mul(y[4 * c + i], inverse), w[i])
    tail = y[-4:]
    turned = [
        *rotate(tail[0], tail[1], from_bits(cos[0]), from_bits(sin[0])),
        *rotate(tail[2], tail[3], from_bits(cos[1]), from_bits(sin[1])),
    ]
    start, behind = row_places(LAYOUT, cache, target, ROWS, page_stride)
    if cutlass.const_expr(DIM == 128):
        row = [choose(Float32, lane < 16, a, b) for a, b in zip(tail, turned, strict=True)]
        if cutlass.const_expr("hadamard" in LAYOUT):
            row = hadamard(row)
        store_index_row(start, behind, row, LAYOUT)
    else:
        store_main_row(start, behind, y, settled(turned))


def weights(weight, channel, BF16):
    """Four weights from a channel on, in f32."""
    if BF16:
        low, high = load_words(weight + Int64(channel) * 2, 2)
        return [*unpack_bf16(low), *unpack_bf16(high)]
    return [from_bits(w) for w in load_words(weight + Int64(channel) * 4, 4)]
