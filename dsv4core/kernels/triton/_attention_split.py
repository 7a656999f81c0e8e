"""The same attention for few tokens: tiles are scored side by side, then used channel block by channel block.

A decode step of one request has one program per 64 heads, which leaves a device idle. Here a first kernel
scores every tile of keys in a program of its own; a second one walks the tiles in order, for 64 channels a
program. Tiles, their order and every operation are those of `sparse_attention_kernel`. That gives a row the
same bits in both forms where matrix units round alike for programs of either shape: in the interpreter, and
on an H100 with 7 and 16 heads, but not with 64 and 128 (docs/triton.md).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv4core.kernels.triton._attention import (
    LOG2E,
    NEVER,
    advance,
    finish,
    listed_rows,
    piece,
    query_pieces,
    row_pieces,
    store_piece,
    tile_weights,
)
from dsv4core.kernels.triton._launch import launch, pieces
from dsv4core.kernels.triton.numerics import matrix

DYNAMIC = [
    "parts",
    "pages",
    "width",
    "extra_pages",
    "extra_width",
    "tiles",
    "slots",
    "lens",
    "extra_slots",
    "extra_lens",
]


@triton.jit
def _score_tile(
    qa, qb, qc, qr, factor, t, place, weights, sums, slots, lens, cache, stride, pages, width,
    token_stride, column_stride, len_stride, tile,
    rows: tl.constexpr, LAYOUT: tl.constexpr, ALIGN: tl.constexpr, HARDWARE: tl.constexpr,
    HEADS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Weights, maximum and sum of one tile into the workspace; nothing for a tile behind the list's end."""
    length = tl.minimum(tl.load(lens + t * len_stride), width)
    start = tile * KEYS
    if start < length:
        n = start + tl.arange(0, KEYS)
        first, scales, live = listed_rows(
            slots, t, n, length, cache, stride, pages, rows, token_stride, column_stride, LAYOUT
        )
        ka, kb, kc, kr = row_pieces(first, scales, live, LAYOUT, ALIGN, HARDWARE)
        p, peak, total = tile_weights(qa, qb, qc, qr, ka, kb, kc, kr, live, factor)
        i = tl.arange(0, HEADS)
        tl.store(weights + (place * HEADS + i)[:, None] * KEYS + tl.arange(0, KEYS)[None, :], p)
        tl.store(sums + place * 2 * HEADS + i, peak)
        tl.store(sums + (place * 2 + 1) * HEADS + i, total)


@triton.jit(do_not_specialize=DYNAMIC)
def score_tiles_kernel(
    q, cache, slots, lens, extra, extra_slots, extra_lens, sink, out, lse, weights, sums, scale,
    parts, tiles, heads, pages, width, extra_pages, extra_width, q_stride, q_head_stride, out_stride,
    out_head_stride, stride, slot_stride, column_stride, len_stride,
    extra_stride, extra_slot_stride, extra_column_stride, extra_len_stride,
    rows: tl.constexpr, LAYOUT: tl.constexpr, ALIGN: tl.constexpr,
    EXTRA: tl.constexpr, extra_rows: tl.constexpr, EXTRA_LAYOUT: tl.constexpr, EXTRA_ALIGN: tl.constexpr,
    HARDWARE: tl.constexpr, HEADS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One program scores one tile of one list for HEADS heads of a token."""
    pid = tl.program_id(0)
    tile = pid % tiles
    part = pid // tiles
    t = (part // parts).to(tl.int64)
    place = part.to(tl.int64) * tiles + tile
    h = (part % parts) * HEADS + tl.arange(0, HEADS)
    qa, qb, qc, qr = query_pieces(q + t * q_stride + h.to(tl.int64) * q_head_stride, h < heads)
    factor = scale * LOG2E
    own = tl.cdiv(width, KEYS)
    if tile < own:
        _score_tile(
            qa, qb, qc, qr, factor, t, place, weights, sums, slots, lens, cache, stride, pages, width,
            slot_stride, column_stride, len_stride, tile, rows, LAYOUT, ALIGN, HARDWARE, HEADS, KEYS,
        )  # fmt: skip
    elif EXTRA:
        _score_tile(
            qa, qb, qc, qr, factor, t, place, weights, sums, extra_slots, extra_lens, extra, extra_stride,
            extra_pages, extra_width, extra_slot_stride, extra_column_stride, extra_len_stride, tile - own,
            extra_rows, EXTRA_LAYOUT, EXTRA_ALIGN, HARDWARE, HEADS, KEYS,
        )  # fmt: skip


@triton.jit
def _walk(
    acc, peak, total, t, place, weights, sums, first, slots, lens, cache, stride, pages, width,
    token_stride, column_stride, len_stride,
    ROTATED: tl.constexpr, rows: tl.constexpr, LAYOUT: tl.constexpr, ALIGN: tl.constexpr,
    HARDWARE: tl.constexpr, HEADS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """All tiles of one list folded into 64 channels. Shapes: acc f32 [HEADS, 64]."""
    length = tl.minimum(tl.load(lens + t * len_stride), width)
    i = tl.arange(0, HEADS)
    for start in range(0, length, KEYS):
        n = start + tl.arange(0, KEYS)
        row, scales, live = listed_rows(
            slots, t, n, length, cache, stride, pages, rows, token_stride, column_stride, LAYOUT
        )
        k = piece(row, scales, live, first, 64, ROTATED, LAYOUT, ALIGN, HARDWARE)
        at = place + start // KEYS
        p = tl.load(weights + (at * HEADS + i)[:, None] * KEYS + tl.arange(0, KEYS)[None, :])
        tile_peak = tl.load(sums + at * 2 * HEADS + i)
        tile_total = tl.load(sums + (at * 2 + 1) * HEADS + i)
        peak, total, past, fresh = advance(peak, total, tile_peak, tile_total)
        acc = tl.dot(matrix(p * fresh[:, None]), k, acc * past[:, None], input_precision="ieee")
    return acc, peak, total


@triton.jit
def _channels(
    t, place, first, weights, sums, cache, slots, lens, extra, extra_slots, extra_lens,
    pages, width, extra_pages, extra_width, stride, slot_stride, column_stride, len_stride,
    extra_stride, extra_slot_stride, extra_column_stride, extra_len_stride,
    ROTATED: tl.constexpr, rows: tl.constexpr, LAYOUT: tl.constexpr, ALIGN: tl.constexpr,
    EXTRA: tl.constexpr, extra_rows: tl.constexpr, EXTRA_LAYOUT: tl.constexpr, EXTRA_ALIGN: tl.constexpr,
    HARDWARE: tl.constexpr, HEADS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Both lists for 64 channels."""
    acc = tl.zeros([HEADS, 64], tl.float32)
    peak = tl.zeros([HEADS], tl.float32) + NEVER
    total = tl.zeros([HEADS], tl.float32)
    acc, peak, total = _walk(
        acc, peak, total, t, place, weights, sums, first, slots, lens, cache, stride, pages, width,
        slot_stride, column_stride, len_stride, ROTATED, rows, LAYOUT, ALIGN, HARDWARE, HEADS, KEYS,
    )  # fmt: skip
    if EXTRA:
        acc, peak, total = _walk(
            acc, peak, total, t, place + tl.cdiv(width, KEYS), weights, sums, first, extra_slots, extra_lens,
            extra, extra_stride, extra_pages, extra_width, extra_slot_stride, extra_column_stride,
            extra_len_stride, ROTATED, extra_rows, EXTRA_LAYOUT, EXTRA_ALIGN, HARDWARE, HEADS, KEYS,
        )  # fmt: skip
    return acc, peak, total


@triton.jit(do_not_specialize=DYNAMIC)
def use_tiles_kernel(
    q, cache, slots, lens, extra, extra_slots, extra_lens, sink, out, lse, weights, sums, scale,
    parts, tiles, heads, pages, width, extra_pages, extra_width, q_stride, q_head_stride, out_stride,
    out_head_stride, stride, slot_stride, column_stride, len_stride,
    extra_stride, extra_slot_stride, extra_column_stride, extra_len_stride,
    rows: tl.constexpr, LAYOUT: tl.constexpr, ALIGN: tl.constexpr,
    EXTRA: tl.constexpr, extra_rows: tl.constexpr, EXTRA_LAYOUT: tl.constexpr, EXTRA_ALIGN: tl.constexpr,
    HARDWARE: tl.constexpr, HEADS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One program makes 64 channels of the output for HEADS heads of a token."""
    pid = tl.program_id(0)
    channel = pid % 8
    part = pid // 8
    t = (part // parts).to(tl.int64)
    place = part.to(tl.int64) * tiles
    h = (part % parts) * HEADS + tl.arange(0, HEADS)
    live = h < heads
    if channel == 7:
        acc, peak, total = _channels(
            t, place, 448, weights, sums, cache, slots, lens, extra, extra_slots, extra_lens,
            pages, width, extra_pages, extra_width, stride, slot_stride, column_stride, len_stride,
            extra_stride, extra_slot_stride, extra_column_stride, extra_len_stride,
            True, rows, LAYOUT, ALIGN, EXTRA, extra_rows, EXTRA_LAYOUT, EXTRA_ALIGN, HARDWARE, HEADS, KEYS,
        )  # fmt: skip
    else:
        acc, peak, total = _channels(
            t, place, channel * 64, weights, sums, cache, slots, lens, extra, extra_slots, extra_lens,
            pages, width, extra_pages, extra_width, stride, slot_stride, column_stride, len_stride,
            extra_stride, extra_slot_stride, extra_column_stride, extra_len_stride,
            False, rows, LAYOUT, ALIGN, EXTRA, extra_rows, EXTRA_LAYOUT, EXTRA_ALIGN, HARDWARE, HEADS, KEYS,
        )  # fmt: skip
    share, natural = finish(peak, total, tl.load(sink + h, live, other=0.0))
    store_piece(out + t * out_stride + h.to(tl.int64) * out_head_stride, acc, share, live, channel * 64, 64)
    if channel == 0:
        tl.store(lse + t * heads + h, natural, live)


def run(
    arguments: tuple[Tensor, ...], scale: float, parts: int, numbers: tuple[int, ...], meta: dict[str, Any]
) -> None:
    """Both kernels: the arguments of `sparse_attention_kernel`, and a workspace for every tile's weights."""
    q = arguments[0]
    width, extra_width = numbers[2], numbers[4]
    keys, heads = meta["KEYS"], meta["HEADS"]
    tiles = pieces(width, keys) + (pieces(extra_width, keys) if meta["EXTRA"] else 0)
    weights = torch.empty(q.shape[0] * parts * tiles, heads, keys, dtype=torch.float32, device=q.device)
    sums = torch.empty(q.shape[0] * parts * tiles, 2, heads, dtype=torch.float32, device=q.device)
    rest = (*arguments, weights, sums, scale, parts, tiles, *numbers)
    launch(score_tiles_kernel, q.shape[0] * parts * tiles, q, *rest, **meta)
    launch(use_tiles_kernel, q.shape[0] * parts * 8, q, *rest, **meta)
