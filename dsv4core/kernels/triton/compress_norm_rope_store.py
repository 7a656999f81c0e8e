"""Close a window: pool its states, normalise, rotate, quantise and store one entry."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.kernels.triton._early import let_next_start, start_early, wait_for_last
from dsv4core.kernels.triton._launch import (
    alignment,
    launch,
    pieces,
    supported,
    value_checks,
)
from dsv4core.kernels.triton._pages import INDEX, MAIN, store_index_rows, store_main_rows
from dsv4core.kernels.triton._table import refuse_holes, table_rows
from dsv4core.kernels.triton._tuning import native_e4m3, tuned
from dsv4core.kernels.triton.numerics import (
    bits_of,
    exp_nonpositive,
    float_of,
    hadamard128,
    inverse_rms,
    rotate,
    round_bf16,
    side_by_side,
    widen,
)
from dsv4core.layout import get_layout

NAME = "compress_norm_rope_store"


@triton.jit
def _halves(x, N: tl.constexpr):
    """Rows 0 .. N/2 - 1 and the others of the second axis. Shapes: [M, N, C] -> [M, N / 2, C] twice."""
    return tl.split(tl.permute(tl.reshape(x, (x.shape[0], 2, N // 2, x.shape[2])), (0, 2, 3, 1)))


@triton.jit
def _in_order(total, x, N: tl.constexpr):
    """total + x[:, 0] + x[:, 1] + ..., one rounding a step. Shapes: total [M, C], x [M, N, C] -> [M, C]."""
    if N == 1:
        return total + tl.reshape(x, (x.shape[0], x.shape[2]))
    else:
        first, second = _halves(x, N)
        return _in_order(_in_order(total, first, N // 2), second, N // 2)


@triton.jit
def _sixty_four(y, k: tl.constexpr, GROUPS: tl.constexpr):
    """Channels 64k .. 64k + 63 of f32 [E, 64 * GROUPS], as [E, 64]: a masked sum of bits."""
    grouped = tl.reshape(bits_of(y), (y.shape[0], GROUPS, 64))
    chosen = tl.arange(0, GROUPS)[None, :, None] == k
    return float_of(tl.sum(tl.where(chosen, grouped, 0), 1))


@triton.jit
def _pool(scores, values, ENTRIES: tl.constexpr, SEGMENTS: tl.constexpr):
    """Softmax-weighted sums over windows (CA1 rule 4): each segment in order, then the segments in order.

    Shapes: f32 [ENTRIES * SEGMENTS, K, C] twice, K rows a segment -> f32 [ENTRIES, C].
    """
    M: tl.constexpr = scores.shape[0]
    K: tl.constexpr = scores.shape[1]
    C: tl.constexpr = scores.shape[2]
    peak = tl.max(scores, 1)
    if SEGMENTS > 1:
        peak = tl.max(tl.reshape(peak, (ENTRIES, SEGMENTS, C)), 1)[:, None, :]
        peak = tl.reshape(tl.broadcast_to(peak, (ENTRIES, SEGMENTS, C)), (M, C))
    e = exp_nonpositive(scores - peak[:, None, :])
    zero = tl.zeros([M, C], tl.float32)
    mass, total = _in_order(zero, e, K), _in_order(zero, e * values, K)
    if SEGMENTS > 1:
        zero = tl.zeros([ENTRIES, C], tl.float32)
        mass = _in_order(zero, tl.reshape(mass, (ENTRIES, SEGMENTS, C)), SEGMENTS)
        total = _in_order(zero, tl.reshape(total, (ENTRIES, SEGMENTS, C)), SEGMENTS)
    return tl.div_rn(total, mass)


@triton.jit
def _once(pointer, mask, other):
    """Load what no other program reads."""
    return tl.load(pointer, mask, other=other, eviction_policy="evict_first")


@triton.jit
def _states(
    state, table, request, last, live, width, page_stride, row_stride, table_stride, column_stride,
    STATE_ROWS: tl.constexpr, RATIO: tl.constexpr, WINDOW: tl.constexpr, DIM: tl.constexpr,
    SEGMENTS: tl.constexpr,
):  # fmt: skip
    """Where the values of windows that end at `last` lie, and whether they do: scores lie behind all values.

    Shapes: request i64, last i32, live bool [E] -> [E * SEGMENTS, K] twice, K rows a segment. The older half
    of an overlapping window reads the first half of the projection, the newer one the second.
    """
    E: tl.constexpr = last.shape[0]
    K: tl.constexpr = WINDOW // SEGMENTS
    M: tl.constexpr = E * SEGMENTS
    every = tl.zeros([E, SEGMENTS], tl.int32)
    segment = tl.reshape(tl.arange(0, SEGMENTS)[None, :] + every, (M, 1))
    end = tl.reshape(last[:, None] + every, (M, 1))
    whose = tl.reshape(request[:, None] + every, (M, 1)) + tl.zeros([1, K], tl.int64)
    some = tl.reshape(live[:, None] & (every == 0), (M, 1))
    j = segment * K + tl.arange(0, K)[None, :]
    index = end - (WINDOW - 1) + j
    page, row = table_rows(
        table, whose, index, some & (index >= 0), width, table_stride, column_stride, STATE_ROWS
    )  # fmt: skip
    valid = page >= 0
    place = tl.where(valid, page, 0).to(tl.int64) * page_stride + row.to(tl.int64) * row_stride
    if WINDOW != RATIO:
        place += tl.where(j >= RATIO, DIM, 0)
    return state + place, valid


@triton.jit
def _pooled(
    rows, valid, first, SCORE: tl.constexpr, SEGMENTS: tl.constexpr, CHANNELS: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    """CHANNELS channels from `first` on of pooled windows, of which `_states` said where they lie."""
    c = tl.max_contiguous(first + tl.arange(0, CHANNELS)[None, None, :], (1, 1, VECTOR))
    mask = valid[:, :, None] & (c >= 0)
    scores = _once(rows[:, :, None] + c + SCORE, mask, -float("inf"))
    values = _once(rows[:, :, None] + c, mask, 0.0)
    return _pool(scores, values, rows.shape[0] // SEGMENTS, SEGMENTS)


@triton.jit
def _closing(
    positions, requests, slots, kv_slots, t, inside, position_stride, request_stride, slot_stride,
    kv_slot_stride, RATIO: tl.constexpr,
):  # fmt: skip
    """Positions of tokens, slots of their entries, their requests, and which of them close a window."""
    position = tl.load(positions + t * position_stride, inside, other=-1).to(tl.int32)
    given = tl.load(slots + t * slot_stride, inside, other=-1)
    target = tl.load(kv_slots + t * kv_slot_stride, inside, other=-1)
    whose = tl.load(requests + t * request_stride, inside, other=-1)
    closes = (given >= 0) & (target >= 0) & (whose >= 0) & (position >= 0) & ((position + 1) % RATIO == 0)
    return position, target, whose, closes


@triton.jit(
    do_not_specialize=["tokens", "run", "width", "table_stride", "positions", "requests", "slots", "table",
                       "kv_slots"]
)  # fmt: skip
def pool_windows_kernel(
    state, positions, requests, slots, table, kv_slots, pooled,
    tokens, run, width, position_stride, request_stride, slot_stride, kv_slot_stride, state_stride,
    state_row_stride, table_stride, column_stride,
    STATE_ROWS: tl.constexpr, RATIO: tl.constexpr, WINDOW: tl.constexpr, DIM: tl.constexpr,
    SCAN: tl.constexpr, ENTRIES: tl.constexpr, SEGMENTS: tl.constexpr, CHANNELS: tl.constexpr,
    VECTOR: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """CHANNELS channels of windows that ENTRIES runs of tokens close, into rows of the closing tokens."""
    start_early(EARLY)
    PARTS: tl.constexpr = DIM // CHANNELS
    first = tl.program_id(0) % PARTS * CHANNELS
    i = tl.arange(0, SCAN)[None, :]
    begin = (tl.program_id(0) // PARTS * ENTRIES + tl.arange(0, ENTRIES)).to(tl.int64) * run
    for step in range(0, run, SCAN):
        t = begin[:, None] + step + i
        position, _, whose, closes = _closing(
            positions, requests, slots, kv_slots, t, (step + i < run) & (t < tokens), position_stride,
            request_stride, slot_stride, kv_slot_stride, RATIO,
        )  # fmt: skip
        done = tl.full([ENTRIES], -1, tl.int32)
        for _ in range(tl.max(tl.sum(closes.to(tl.int32), 1), 0)):
            done = tl.min(tl.where(closes & (i > done[:, None]), i, SCAN), 1)
            chosen = i == done[:, None]
            last = tl.sum(tl.where(chosen, position, 0), 1)
            request = tl.sum(tl.where(chosen, whose, 0), 1).to(tl.int64)
            live = done < SCAN
            rows, valid = _states(
                state, table, request, last, live, width, state_stride, state_row_stride, table_stride,
                column_stride, STATE_ROWS, RATIO, WINDOW, DIM, SEGMENTS,
            )  # fmt: skip
            y = _pooled(rows, valid, first, DIM, SEGMENTS, CHANNELS, VECTOR)
            place = pooled + ((begin + step + done) * DIM + first)[:, None] + tl.arange(0, CHANNELS)[None, :]
            tl.store(place, y, live[:, None])


@triton.jit
def _entries(
    state, table, pooled, place, cos_sin, weight, cache, request, last, slot, live, width, state_stride,
    state_row_stride, table_stride, column_stride, angle_stride, page_stride, eps,
    STATE_ROWS: tl.constexpr, RATIO: tl.constexpr, WINDOW: tl.constexpr, DIM: tl.constexpr,
    rows: tl.constexpr, LAYOUT: tl.constexpr, HADAMARD: tl.constexpr, ALIGN: tl.constexpr,
    HARDWARE: tl.constexpr, POOLED: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Make and store the entries of windows that end at `last`, pooled at `place` where that was done before.

    Shapes: place, request, slot i64, last i32 [E].
    """
    # Asked for before the states, so that nothing waits for them behind the pooling.
    half = tl.arange(0, 32)[None, :]
    start = last - (RATIO - 1)  # the window's first position
    angle = cos_sin + (start.to(tl.int64) * angle_stride)[:, None] + half
    shown = live[:, None] & (half < 32)
    cos, sin = tl.load(angle, shown, other=0.0), tl.load(angle + 32, shown, other=0.0)
    w = widen(tl.load(weight + tl.arange(0, DIM)))[None, :]
    if POOLED:
        c = tl.max_contiguous(tl.arange(0, DIM)[None, :], (1, VECTOR))
        y = _once(pooled + (place * DIM)[:, None] + c, live[:, None] & (c >= 0), 0.0)
    else:
        states, valid = _states(
            state, table, request, last, live, width, state_stride, state_row_stride, table_stride,
            column_stride, STATE_ROWS, RATIO, WINDOW, DIM, 1,
        )  # fmt: skip
        y = _pooled(states, valid, 0, DIM * (WINDOW // RATIO), 1, DIM, VECTOR)
    y = (y * inverse_rms(y, DIM, eps)[:, None]) * w
    tail = rotate(_sixty_four(y, DIM // 64 - 1, DIM // 64), cos, sin, False, 64)
    if DIM == 512:
        # Rounded before the layout sees it: a row of plain e4m3 takes window rows from f32, entries not.
        nope, tail = round_bf16(y), round_bf16(tail)
        store_main_rows(cache, page_stride, slot, live, nope, tail, rows, LAYOUT, ALIGN, HARDWARE)
    else:
        values = side_by_side(_sixty_four(y, 0, 2), tail)
        if HADAMARD:
            values = hadamard128(round_bf16(values))
        store_index_rows(cache, page_stride, slot, live, values, rows, LAYOUT, ALIGN, HARDWARE)


@triton.jit(
    do_not_specialize=["tokens", "run", "width", "table_stride", "positions", "requests", "slots", "table",
                       "kv_slots"]
)  # fmt: skip
def compress_norm_rope_store_kernel(
    state, positions, requests, slots, table, pooled, cos_sin, weight, cache, kv_slots,
    tokens, run, width, position_stride, request_stride, slot_stride, kv_slot_stride, state_stride,
    state_row_stride, table_stride, column_stride, angle_stride, page_stride, eps,
    STATE_ROWS: tl.constexpr, RATIO: tl.constexpr, WINDOW: tl.constexpr, DIM: tl.constexpr,
    rows: tl.constexpr, LAYOUT: tl.constexpr, HADAMARD: tl.constexpr, ALIGN: tl.constexpr,
    HARDWARE: tl.constexpr, SCAN: tl.constexpr, ENTRIES: tl.constexpr, POOLED: tl.constexpr,
    VECTOR: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One program goes through ENTRIES runs of tokens side by side, SCAN at a time, and closes windows."""
    if EARLY:
        if not POOLED:
            wait_for_last()
        let_next_start()
    i = tl.arange(0, SCAN)[None, :]
    begin = (tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)).to(tl.int64) * run
    for step in range(0, run, SCAN):
        t = begin[:, None] + step + i
        position, target, whose, closes = _closing(
            positions, requests, slots, kv_slots, t, (step + i < run) & (t < tokens), position_stride,
            request_stride, slot_stride, kv_slot_stride, RATIO,
        )  # fmt: skip
        if EARLY and POOLED:
            wait_for_last()  # what was read above is older than `pool_windows_kernel`, which had waited
        done = tl.full([ENTRIES], -1, tl.int32)
        for _ in range(tl.max(tl.sum(closes.to(tl.int32), 1), 0)):
            done = tl.min(tl.where(closes & (i > done[:, None]), i, SCAN), 1)
            chosen = i == done[:, None]
            last = tl.sum(tl.where(chosen, position, 0), 1)
            slot = tl.sum(tl.where(chosen, target, 0), 1)
            request = tl.sum(tl.where(chosen, whose, 0), 1).to(tl.int64)
            _entries(
                state, table, pooled, begin + step + done, cos_sin, weight, cache, request, last, slot,
                done < SCAN, width, state_stride, state_row_stride, table_stride, column_stride, angle_stride,
                page_stride, eps, STATE_ROWS, RATIO, WINDOW, DIM, rows, LAYOUT, HADAMARD, ALIGN, HARDWARE,
                POOLED, VECTOR,
            )  # fmt: skip


def compress_norm_rope_store(
    state_cache: Tensor, positions: Tensor, token_to_req: Tensor, slot_mapping: Tensor, block_table: Tensor,
    cos_sin: Tensor, norm_weight: Tensor, k_cache: Tensor, kv_slot_mapping: Tensor, *,
    ratio: int, head_dim: int, rows: int, layout: str, eps: float, rotate: str,
) -> None:  # fmt: skip
    """For every token that completes a window: pool, norm, rotate at the window's first position, store.

    Shapes: state_cache f32 [N, S, 2W] with W = head_dim (ratio 128) or 2 head_dim (ratio 4, overlap),
    positions i64 [T], token_to_req i32 [T], slot_mapping i64 [<= T] and block_table i32 [R, W] of the state
    cache, cos_sin f32 [P, 64], norm_weight [head_dim], k_cache u8 [pages, B] (written), kv_slot_mapping i64
    [T].
    """
    supported(NAME, "layout", layout, MAIN + INDEX)
    _check(state_cache, ratio, head_dim, layout, rotate)
    window = 2 * ratio if ratio == 4 else ratio
    tokens = slot_mapping.shape[0]
    if value_checks(state_cache):
        p = positions[:tokens]
        closes = ((p + 1) % ratio == 0) & (slot_mapping >= 0) & (kv_slot_mapping[:tokens] >= 0)
        index = p[closes].unsqueeze(1) + torch.arange(1 - window, 1, device=p.device)
        request = token_to_req[:tokens][closes].long().unsqueeze(1)
        refuse_holes(
            NAME, block_table, request, index, index >= 0, state_cache.shape[1], state_cache.shape[0],
            "a state page",
        )  # fmt: skip
    width = block_table.shape[1] if block_table.shape[0] else 0
    given = (positions, token_to_req, slot_mapping, block_table)
    strides = (
        positions.stride(0), token_to_req.stride(0), slot_mapping.stride(0), kv_slot_mapping.stride(0),
        state_cache.stride(0), state_cache.stride(1), block_table.stride(0), block_table.stride(1),
    )  # fmt: skip
    sizes = {"STATE_ROWS": state_cache.shape[1], "RATIO": ratio, "WINDOW": window, "DIM": head_dim}
    pooled = state_cache  # not read
    if window == 128:  # long ones: programs side by side pool some channels each, so that few fill a device
        pooled = state_cache.new_empty(tokens, head_dim)
        meta = tuned("pool_windows", state_cache)
        channels = meta["CHANNELS"] = min(meta["CHANNELS"], head_dim)
        run = _run(meta, tokens)
        launch(
            pool_windows_kernel, pieces(tokens, run * meta["ENTRIES"]) * (head_dim // channels), state_cache,
            state_cache, *given, kv_slot_mapping, pooled, tokens, run, width, *strides, **sizes, SEGMENTS=8,
            **meta,
        )  # fmt: skip
    meta = tuned(NAME, state_cache, dim=head_dim, window=window)
    run = _run(meta, tokens)
    launch(
        compress_norm_rope_store_kernel, pieces(tokens, run * meta["ENTRIES"]), state_cache, state_cache,
        *given, pooled, cos_sin, norm_weight, k_cache, kv_slot_mapping, tokens, run, width, *strides,
        cos_sin.stride(0), k_cache.stride(0), eps, **sizes, rows=rows, LAYOUT=layout,
        HADAMARD=rotate == "hadamard", ALIGN=alignment(k_cache), HARDWARE=native_e4m3(k_cache),
        POOLED=window == 128, **meta,
    )  # fmt: skip


def _run(meta: dict[str, int], tokens: int) -> int:
    """Tokens of a program: neighbours in a prefill close windows together; fewer where devices would idle."""
    return max(1, min(meta.pop("run"), tokens // (meta["ENTRIES"] * meta.pop("programs"))))


def _check(state: Tensor, ratio: int, head_dim: int, layout: str, rotate: str) -> None:
    target = get_layout(layout)
    if ratio not in (4, 128):
        raise OpArgumentError(NAME, "ratio", "4 (overlapping) or 128", str(ratio))
    if target.width != head_dim:
        expected = f"{target.width}, the row width of {layout}"
        raise OpArgumentError(NAME, "head_dim", expected, str(head_dim))
    if rotate != target.rotate:
        raise OpArgumentError(NAME, "rotate", f"{target.rotate!r}, the flag of {layout}", repr(rotate))
    width = 2 * head_dim * (2 if ratio == 4 else 1)
    if state.shape[2] != width:
        raise OpArgumentError(NAME, "state_cache", f"last dimension {width}", str(state.shape[2]))
