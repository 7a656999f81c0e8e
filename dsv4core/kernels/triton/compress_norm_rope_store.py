"""Close a window: pool its states, normalise, rotate, quantise and store one entry."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.kernels.triton._launch import (
    alignment,
    block,
    launch,
    supported,
    value_checks,
)
from dsv4core.kernels.triton._pages import INDEX, MAIN, store_index_rows, store_main_rows
from dsv4core.kernels.triton._table import refuse_holes, table_slots
from dsv4core.kernels.triton._tuning import native_e4m3
from dsv4core.kernels.triton.numerics import (
    bits_of,
    exp_nonpositive,
    float_of,
    hadamard128,
    inverse_rms,
    rotate,
    round_bf16,
    widen,
)
from dsv4core.layout import get_layout

NAME = "compress_norm_rope_store"


@triton.jit
def _row(tensor, k: tl.constexpr):
    """Row k of f32 [8, C] as [C]: a masked sum of bits, which keeps the sign of zero."""
    chosen = tl.arange(0, tensor.shape[0])[:, None] == k
    return float_of(tl.sum(tl.where(chosen, bits_of(tensor), 0), 0))


@triton.jit
def _sixty_four(y, k: tl.constexpr, GROUPS: tl.constexpr):
    """Channels 64k .. 64k + 63 of f32 [1, 64 * GROUPS], as [1, 64]."""
    grouped = tl.reshape(bits_of(y), (GROUPS, 64))
    chosen = tl.arange(0, GROUPS)[:, None] == k
    return float_of(tl.sum(tl.where(chosen, grouped, 0), 0))[None, :]


@triton.jit
def _places(
    table, request, last, j, width, page_stride, row_stride, table_stride, column_stride,
    STATE_ROWS: tl.constexpr, RATIO: tl.constexpr, WINDOW: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Where rows j of the window that ends at `last` start, and whether there are such rows.

    The older half of an overlapping window reads the first half of the projection, the newer one the second.
    """
    index = last - (WINDOW - 1) + j
    slot = table_slots(
        table,
        request + tl.zeros_like(index),
        index,
        index >= 0,
        width,
        table_stride,
        column_stride,
        STATE_ROWS,
    )
    valid = slot >= 0
    slot = tl.where(valid, slot, 0)
    place = (slot // STATE_ROWS) * page_stride + (slot % STATE_ROWS) * row_stride
    if WINDOW != RATIO:
        place += tl.where(j >= RATIO, DIM, 0)
    return place, valid


@triton.jit
def _pool(
    state, table, request, last, c, width, page_stride, row_stride, table_stride, column_stride,
    STATE_ROWS: tl.constexpr, RATIO: tl.constexpr, WINDOW: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Softmax-weighted sum over a window for channels c, in eight segments (CA1 rule 4): f32 [C]."""
    SCORE: tl.constexpr = DIM * (WINDOW // RATIO)  # scores lie behind all values of kv
    SEGMENT: tl.constexpr = WINDOW // 8
    infinity = float("inf")
    j = tl.arange(0, WINDOW)
    place, valid = _places(
        table, request, last, j, width, page_stride, row_stride, table_stride, column_stride,
        STATE_ROWS, RATIO, WINDOW, DIM,
    )  # fmt: skip
    every = state + place[:, None] + c[None, :]
    peak = tl.max(tl.load(every + SCORE, valid[:, None] & (c >= 0)[None, :], other=-infinity), 0)
    if SEGMENT == 1:  # a segment is one row: plain order
        total = tl.zeros_like(peak)
        mass = tl.zeros_like(peak)
        for k in tl.static_range(8):
            place, valid = _places(
                table, request, last, tl.full([1], k, tl.int64), width, page_stride, row_stride, table_stride,
                column_stride, STATE_ROWS, RATIO, WINDOW, DIM,
            )  # fmt: skip
            row = state + place + c
            e = exp_nonpositive(tl.load(row + SCORE, valid & (c >= 0), other=-infinity) - peak)
            total = total + e * tl.load(row, valid & (c >= 0), other=0.0)
            mass = mass + e
    else:
        first = tl.arange(0, 8) * SEGMENT
        part = tl.zeros([8, c.shape[0]], tl.float32)
        weight = tl.zeros([8, c.shape[0]], tl.float32)
        for k in tl.static_range(SEGMENT):
            place, valid = _places(
                table, request, last, first + k, width, page_stride, row_stride, table_stride, column_stride,
                STATE_ROWS, RATIO, WINDOW, DIM,
            )  # fmt: skip
            rows = state + place[:, None] + c[None, :]
            mask = valid[:, None] & (c >= 0)[None, :]
            e = exp_nonpositive(tl.load(rows + SCORE, mask, other=-infinity) - peak[None, :])
            part = part + e * tl.load(rows, mask, other=0.0)
            weight = weight + e
        total, mass = _row(part, 0), _row(weight, 0)
        for k in tl.static_range(1, 8):
            total, mass = total + _row(part, k), mass + _row(weight, k)
    return tl.div_rn(total, mass)


@triton.jit(
    do_not_specialize=["width", "table_stride", "positions", "requests", "slots", "table", "kv_slots"]
)
def compress_norm_rope_store_kernel(
    state, positions, requests, slots, table, cos_sin, weight, cache, kv_slots,
    width, position_stride, request_stride, slot_stride, kv_slot_stride, state_stride, state_row_stride,
    table_stride, column_stride, angle_stride, page_stride, eps,
    STATE_ROWS: tl.constexpr, RATIO: tl.constexpr, WINDOW: tl.constexpr, DIM: tl.constexpr,
    CHANNELS: tl.constexpr, rows: tl.constexpr, LAYOUT: tl.constexpr, HADAMARD: tl.constexpr,
    ALIGN: tl.constexpr, HARDWARE: tl.constexpr,
):  # fmt: skip
    """One program a token; it ends at once unless its token closes a window.

    Channels are pooled CHANNELS at a time, so that the scores read for the maximum are still in a cache when
    they are read for the weights.
    """
    t = tl.program_id(0).to(tl.int64)
    last = tl.load(positions + t * position_stride)
    kv_slot = tl.load(kv_slots + t * kv_slot_stride)
    open_window = (
        (tl.load(slots + t * slot_stride) < 0) | (kv_slot < 0) | (last < 0) | ((last + 1) % RATIO != 0)
    )
    if not open_window:
        request = tl.load(requests + t * request_stride).to(tl.int64)
        BLOCKS: tl.constexpr = DIM // CHANNELS
        block_index = tl.arange(0, BLOCKS)[:, None]
        pooled = tl.zeros([BLOCKS, CHANNELS], tl.float32)
        for b in range(BLOCKS):
            c = b * CHANNELS + tl.arange(0, CHANNELS)
            entry = _pool(
                state, table, request, last, c, width, state_stride, state_row_stride, table_stride,
                column_stride, STATE_ROWS, RATIO, WINDOW, DIM,
            )  # fmt: skip
            pooled = tl.where(block_index == b, entry[None, :], pooled)
        y = tl.reshape(pooled, (1, DIM))
        w = widen(tl.load(weight + tl.arange(0, DIM)))[None, :]
        y = (y * inverse_rms(y, DIM, eps)[:, None]) * w

        half = tl.arange(0, 32)[None, :]
        angle = cos_sin + (last - (RATIO - 1)) * angle_stride  # the window's first position
        cos, sin = tl.load(angle + half), tl.load(angle + 32 + half)
        tail = rotate(_sixty_four(y, DIM // 64 - 1, DIM // 64), cos, sin, False, 64)
        slot = kv_slot + tl.zeros([1], tl.int64)
        live = slot >= 0
        if DIM == 512:
            # Rounded before the layout sees it: a row of plain e4m3 takes window rows from f32, entries not.
            nope, tail = round_bf16(y), round_bf16(tail)
            store_main_rows(cache, page_stride, slot, live, nope, tail, rows, LAYOUT, ALIGN, HARDWARE)
        else:
            low = _sixty_four(y, 0, 2)
            if HADAMARD:
                low, tail = hadamard128(round_bf16(low), round_bf16(tail))
            store_index_rows(cache, page_stride, slot, live, low, tail, rows, LAYOUT, ALIGN, HARDWARE)


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
    launch(
        compress_norm_rope_store_kernel, tokens, state_cache, state_cache, positions, token_to_req,
        slot_mapping, block_table, cos_sin, norm_weight, k_cache, kv_slot_mapping,
        width, positions.stride(0), token_to_req.stride(0), slot_mapping.stride(0),
        kv_slot_mapping.stride(0), state_cache.stride(0), state_cache.stride(1), block_table.stride(0),
        block_table.stride(1), cos_sin.stride(0), k_cache.stride(0), eps,
        STATE_ROWS=state_cache.shape[1], RATIO=ratio, WINDOW=window, DIM=head_dim,
        CHANNELS=head_dim if window == 8 else block(128, head_dim), rows=rows, LAYOUT=layout,
        HADAMARD=rotate == "hadamard", ALIGN=alignment(k_cache), HARDWARE=native_e4m3(k_cache),
        num_warps=8 if window == 128 else 4 if head_dim == 512 else 1,
    )  # fmt: skip


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
