"""The same attention for few tokens: keys are scored side by side, then used channel block by channel block.

A decode step of one request has one program per 64 heads, which leaves a device idle. Here a first kernel
scores blocks of keys, each in a program of its own; a second one folds the tiles in order, for some channels
a program. Tiles, their order and every operation on a value are those of
`sparse_attention_kernel`, so a row has the same bits in both forms.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv4core.kernels.triton._attention import (
    LOG2E,
    NEVER,
    finish,
    fold,
    listed_rows,
    piece,
    query_pieces,
    row_pieces,
    store_piece,
    tile_scores,
)
from dsv4core.kernels.triton._launch import launch, pieces
from dsv4core.kernels.triton._tuning import tuned
from dsv4core.kernels.triton.numerics import add_product

DYNAMIC = [
    "parts", "limit", "width", "extra_limit", "extra_width", "tiles", "slots", "lens", "extra_slots",
    "extra_lens",
]  # fmt: skip


@triton.jit
def _score(
    qa, qb, qc, qr, factor, t, target, slots, lens, cache, stride, limit, width, token_stride, column_stride,
    len_stride, start,
    rows: tl.constexpr, LAYOUT: tl.constexpr, ALIGN: tl.constexpr, HARDWARE: tl.constexpr,
    HEADS: tl.constexpr, KEYS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Scores of BLOCK keys into a tile of the workspace; nothing for a block behind the list's end."""
    length = tl.minimum(tl.load(lens + t * len_stride), width)
    if start < length:
        n = start + tl.arange(0, BLOCK)
        first, scales, live = listed_rows(
            slots, t, n, length, cache, stride, limit, token_stride, column_stride, rows, LAYOUT
        )
        ka, kb, kc, kr = row_pieces(first, scales, live, LAYOUT, ALIGN, HARDWARE)
        s = tile_scores(qa, qb, qc, qr, ka, kb, kc, kr, live, factor)
        i = tl.arange(0, HEADS)[:, None]
        tl.store(target + i * KEYS + start % KEYS + tl.arange(0, BLOCK)[None, :], s)


@triton.jit(do_not_specialize=DYNAMIC)
def score_keys_kernel(
    q, cache, slots, lens, extra, extra_slots, extra_lens, sink, out, lse, scores, scale,
    parts, tiles, heads, limit, width, extra_limit, extra_width, q_stride, q_head_stride, out_stride,
    out_head_stride, stride, slot_stride, column_stride, len_stride,
    extra_stride, extra_slot_stride, extra_column_stride, extra_len_stride,
    rows: tl.constexpr, LAYOUT: tl.constexpr, ALIGN: tl.constexpr,
    EXTRA: tl.constexpr, extra_rows: tl.constexpr, EXTRA_LAYOUT: tl.constexpr, EXTRA_ALIGN: tl.constexpr,
    HARDWARE: tl.constexpr, HEADS: tl.constexpr, KEYS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program scores one block of keys of one list for HEADS heads of a token."""
    pid = tl.program_id(0)
    BLOCKS: tl.constexpr = KEYS // BLOCK
    tile = pid // BLOCKS % tiles
    part = pid // BLOCKS // tiles
    t = (part // parts).to(tl.int64)
    target = scores + (part.to(tl.int64) * tiles + tile) * (HEADS * KEYS)
    h = (part % parts) * HEADS + tl.arange(0, HEADS)
    qa, qb, qc, qr = query_pieces(q + t * q_stride + h.to(tl.int64) * q_head_stride, h < heads)
    factor = scale * LOG2E
    own = tl.cdiv(width, KEYS)
    start = tile * KEYS + pid % BLOCKS * BLOCK
    if tile < own:
        _score(
            qa, qb, qc, qr, factor, t, target, slots, lens, cache, stride, limit, width, slot_stride,
            column_stride, len_stride, start, rows, LAYOUT, ALIGN, HARDWARE, HEADS, KEYS, BLOCK,
        )  # fmt: skip
    elif EXTRA:
        _score(
            qa, qb, qc, qr, factor, t, target, extra_slots, extra_lens, extra, extra_stride, extra_limit,
            extra_width, extra_slot_stride, extra_column_stride, extra_len_stride, start - own * KEYS,
            extra_rows, EXTRA_LAYOUT, EXTRA_ALIGN, HARDWARE, HEADS, KEYS, BLOCK,
        )  # fmt: skip


@triton.jit
def _walk(
    acc, peak, total, rounded, t, scores, first, slots, lens, cache, stride, limit, width,
    token_stride, column_stride, len_stride,
    ROTATED: tl.constexpr, rows: tl.constexpr, LAYOUT: tl.constexpr, ALIGN: tl.constexpr,
    HARDWARE: tl.constexpr, HEADS: tl.constexpr, KEYS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """All tiles of one list folded into a block of channels. Shapes: acc f32 [HEADS, CHANNELS]."""
    length = tl.minimum(tl.load(lens + t * len_stride), width)
    place = tl.arange(0, HEADS)[:, None] * KEYS + tl.arange(0, KEYS)[None, :]
    for start in range(0, length, KEYS):
        n = start + tl.arange(0, KEYS)
        row, scales, live = listed_rows(
            slots, t, n, length, cache, stride, limit, token_stride, column_stride, rows, LAYOUT
        )
        k = piece(row, scales, live, first, CHANNELS, ROTATED, LAYOUT, ALIGN, HARDWARE)
        s = tl.load(scores + start * HEADS + place)
        s = tl.where(live[None, :], s, -float("inf"))
        w, peak, total, rounded, past = fold(s, peak, total, rounded)
        acc = add_product(acc * past[:, None], w, k)
    return acc, peak, total, rounded


@triton.jit
def _channels(
    t, scores, first, cache, slots, lens, extra, extra_slots, extra_lens,
    limit, width, extra_limit, extra_width, stride, slot_stride, column_stride, len_stride,
    extra_stride, extra_slot_stride, extra_column_stride, extra_len_stride,
    ROTATED: tl.constexpr, rows: tl.constexpr, LAYOUT: tl.constexpr, ALIGN: tl.constexpr,
    EXTRA: tl.constexpr, extra_rows: tl.constexpr, EXTRA_LAYOUT: tl.constexpr, EXTRA_ALIGN: tl.constexpr,
    HARDWARE: tl.constexpr, HEADS: tl.constexpr, KEYS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Both lists for one block of channels: unscaled sums, maximum, both sums of weights."""
    acc = tl.zeros([HEADS, CHANNELS], tl.float32)
    peak = tl.zeros([HEADS], tl.float32) + NEVER
    total = tl.zeros([HEADS], tl.float32)
    rounded = tl.zeros([HEADS], tl.float32)
    acc, peak, total, rounded = _walk(
        acc, peak, total, rounded, t, scores, first, slots, lens, cache, stride, limit, width, slot_stride,
        column_stride, len_stride, ROTATED, rows, LAYOUT, ALIGN, HARDWARE, HEADS, KEYS, CHANNELS,
    )  # fmt: skip
    if EXTRA:
        acc, peak, total, rounded = _walk(
            acc, peak, total, rounded, t, scores + tl.cdiv(width, KEYS) * (HEADS * KEYS), first, extra_slots,
            extra_lens, extra, extra_stride, extra_limit, extra_width, extra_slot_stride,
            extra_column_stride, extra_len_stride,
            ROTATED, extra_rows, EXTRA_LAYOUT, EXTRA_ALIGN, HARDWARE, HEADS, KEYS, CHANNELS,
        )  # fmt: skip
    return acc, peak, total, rounded


@triton.jit(do_not_specialize=DYNAMIC)
def use_scores_kernel(
    q, cache, slots, lens, extra, extra_slots, extra_lens, sink, out, lse, scores, scale,
    parts, tiles, heads, limit, width, extra_limit, extra_width, q_stride, q_head_stride, out_stride,
    out_head_stride, stride, slot_stride, column_stride, len_stride,
    extra_stride, extra_slot_stride, extra_column_stride, extra_len_stride,
    rows: tl.constexpr, LAYOUT: tl.constexpr, ALIGN: tl.constexpr,
    EXTRA: tl.constexpr, extra_rows: tl.constexpr, EXTRA_LAYOUT: tl.constexpr, EXTRA_ALIGN: tl.constexpr,
    HARDWARE: tl.constexpr, HEADS: tl.constexpr, KEYS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program makes CHANNELS channels of the output for HEADS heads of a token."""
    pid = tl.program_id(0)
    first = pid % (512 // CHANNELS) * CHANNELS
    part = pid // (512 // CHANNELS)
    t = (part // parts).to(tl.int64)
    scores += part.to(tl.int64) * tiles * (HEADS * KEYS)
    h = (part % parts) * HEADS + tl.arange(0, HEADS)
    live = h < heads
    # Two programs in one: matrix units take keys in another order where one operand was bytes or bf16.
    if first >= 448:
        acc, peak, total, rounded = _channels(
            t, scores, first, cache, slots, lens, extra, extra_slots, extra_lens,
            limit, width, extra_limit, extra_width, stride, slot_stride, column_stride, len_stride,
            extra_stride, extra_slot_stride, extra_column_stride, extra_len_stride,
            True, rows, LAYOUT, ALIGN, EXTRA, extra_rows, EXTRA_LAYOUT, EXTRA_ALIGN,
            HARDWARE, HEADS, KEYS, CHANNELS,
        )  # fmt: skip
    else:
        acc, peak, total, rounded = _channels(
            t, scores, first, cache, slots, lens, extra, extra_slots, extra_lens,
            limit, width, extra_limit, extra_width, stride, slot_stride, column_stride, len_stride,
            extra_stride, extra_slot_stride, extra_column_stride, extra_len_stride,
            False, rows, LAYOUT, ALIGN, EXTRA, extra_rows, EXTRA_LAYOUT, EXTRA_ALIGN,
            HARDWARE, HEADS, KEYS, CHANNELS,
        )  # fmt: skip
    share, natural = finish(peak, total, rounded, tl.load(sink + h, live, other=0.0))
    store_piece(out + t * out_stride + h.to(tl.int64) * out_head_stride, acc, share, live, first, CHANNELS)
    if first == 0:
        tl.store(lse + t * heads + h, natural, live)


def run(
    arguments: tuple[Tensor, ...], scale: float, parts: int, numbers: tuple[int, ...], meta: dict[str, Any]
) -> None:
    """Both kernels: the arguments of `sparse_attention_kernel`, and a workspace for every tile's scores."""
    q = arguments[0]
    width, extra_width = numbers[2], numbers[4]
    keys, heads = meta["KEYS"], meta["HEADS"]
    tiles = pieces(width, keys) + (pieces(extra_width, keys) if meta["EXTRA"] else 0)
    scores = torch.empty(q.shape[0] * parts * tiles, heads, keys, dtype=torch.float32, device=q.device)
    rest = (*arguments, scores, scale, parts, tiles, *numbers)
    programs = q.shape[0] * parts
    score, use = tuned("score_keys", q), tuned("use_scores", q, programs=programs)
    launch(score_keys_kernel, programs * tiles * (keys // score["BLOCK"]), q, *rest, **meta, **score)
    launch(use_scores_kernel, programs * (512 // use["CHANNELS"]), q, *rest, **meta, **use)
