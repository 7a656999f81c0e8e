"""The same attention for few tokens: tiles of keys are weighed side by side, then used channel by channel.

A decode step of one request has one program per 64 heads, which leaves a device idle. Here a first kernel
weighs tiles of keys, each in a program of its own; a second one folds them in order, for some channels a
program, with rows and weights of the next tiles on their way. Tiles, their order and every operation on a
value are those of `sparse_attention_kernel`, so a row has the same bits in both forms.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv4core.kernels.triton._attention import (
    LOG2E,
    NEVER,
    decoded,
    finish,
    fold,
    listed_rows,
    operand,
    piece,
    scale_words,
    store_piece,
    stored,
    weigh,
)
from dsv4core.kernels.triton._early import let_next_start, wait_for_last
from dsv4core.kernels.triton._launch import interpreted, launch, pieces
from dsv4core.kernels.triton._pages import store_as
from dsv4core.kernels.triton._tuning import rows_of, tuned
from dsv4core.kernels.triton.numerics import SUM, add_product, widen

DYNAMIC = [
    "parts", "limit", "width", "extra_limit", "extra_width", "tiles", "slots", "lens", "extra_slots",
    "extra_lens",
]  # fmt: skip
STATS = tl.constexpr(3)  # of a tile and a head: maximum, sum of weights, sum of rounded weights


@triton.jit
def _add_scores(
    s, q, heads_live, x, words, first, ROTATED: tl.constexpr, LAYOUT: tl.constexpr, HARDWARE: tl.constexpr
):
    """s + q @ k for a piece of channels. Shapes: s [H, N], q pointers [H], x as `stored` gave it."""
    d = tl.arange(0, x.shape[1])[None, :]
    query = operand(q[:, None] + first + d, heads_live[:, None] & (d < x.shape[1]))
    return add_product(s, query, tl.trans(decoded(x, words, first, ROTATED, LAYOUT, HARDWARE)))


@triton.jit
def _weigh_tile(
    q, heads_live, factor, t, weights, stats, slots, lens, cache, stride, limit, width, token_stride,
    column_stride, len_stride, start,
    rows: tl.constexpr, LAYOUT: tl.constexpr, ALIGN: tl.constexpr, HARDWARE: tl.constexpr,
    HEADS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Weights of a tile into the workspace; nothing for a tile behind the list's end."""
    length = tl.load(lens + t * len_stride)
    n = start + tl.arange(0, KEYS)
    # Slots are read up to the list's width: they need not wait for its length.
    first, scales, live = listed_rows(
        slots, t, n, width, cache, stride, limit, token_stride, column_stride, rows, LAYOUT
    )
    if start < length:
        live &= n < length
        low = scale_words(scales, live, 0, LAYOUT, ALIGN)
        high = scale_words(scales, live, 256, LAYOUT, ALIGN)
        # All of a row is on its way before the first product; heads come piece by piece, and leave room for
        # a second program beside.
        a = stored(first, live, 0, 128, False, LAYOUT, ALIGN)
        b = stored(first, live, 128, 128, False, LAYOUT, ALIGN)
        c = stored(first, live, 256, 128, False, LAYOUT, ALIGN)
        d = stored(first, live, 384, 64, False, LAYOUT, ALIGN)
        r = stored(first, live, 448, 64, True, LAYOUT, ALIGN)
        none = tl.zeros([HEADS, KEYS], SUM)
        s = _add_scores(none, q, heads_live, a, low, 0, False, LAYOUT, HARDWARE)
        s = _add_scores(s, q, heads_live, b, low, 128, False, LAYOUT, HARDWARE) * factor
        s += _add_scores(none, q, heads_live, c, high, 256, False, LAYOUT, HARDWARE) * factor
        s += _add_scores(none, q, heads_live, d, high, 384, False, LAYOUT, HARDWARE) * factor
        s += _add_scores(none, q, heads_live, r, high, 448, True, LAYOUT, HARDWARE) * factor
        s = tl.where(live[None, :], s.to(tl.float32), -float("inf"))
        w, peak, total, rounded = weigh(s)
        i = tl.arange(0, HEADS)
        store_as(weights + i[:, None] * KEYS + tl.arange(0, KEYS)[None, :], w, i[:, None] < HEADS)
        tl.store(stats + i, peak)
        tl.store(stats + HEADS + i, total)
        tl.store(stats + 2 * HEADS + i, rounded)


@triton.jit(do_not_specialize=DYNAMIC)
def weigh_keys_kernel(
    q, cache, slots, lens, extra, extra_slots, extra_lens, sink, out, lse, weights, stats, scale,
    parts, tiles, heads, limit, width, extra_limit, extra_width, q_stride, q_head_stride, out_stride,
    out_head_stride, stride, slot_stride, column_stride, len_stride,
    extra_stride, extra_slot_stride, extra_column_stride, extra_len_stride,
    rows: tl.constexpr, LAYOUT: tl.constexpr, ALIGN: tl.constexpr,
    EXTRA: tl.constexpr, extra_rows: tl.constexpr, EXTRA_LAYOUT: tl.constexpr, EXTRA_ALIGN: tl.constexpr,
    HARDWARE: tl.constexpr, HEADS: tl.constexpr, KEYS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One program weighs one tile of keys for HEADS heads of a token."""
    if EARLY:
        let_next_start()
    pid = tl.program_id(0)
    tile = pid % tiles
    part = pid // tiles
    t = (part // parts).to(tl.int64)
    weights += pid.to(tl.int64) * (HEADS * KEYS)
    stats += pid.to(tl.int64) * (STATS * HEADS)
    h = (part % parts) * HEADS + tl.arange(0, HEADS)
    query = q + t * q_stride + h.to(tl.int64) * q_head_stride
    factor = scale * LOG2E
    own = tl.cdiv(width, KEYS)
    if tile < own:
        _weigh_tile(
            query, h < heads, factor, t, weights, stats, slots, lens, cache, stride, limit, width,
            slot_stride, column_stride, len_stride, tile * KEYS, rows, LAYOUT, ALIGN, HARDWARE, HEADS, KEYS,
        )  # fmt: skip
    elif EXTRA:
        _weigh_tile(
            query, h < heads, factor, t, weights, stats, extra_slots, extra_lens, extra, extra_stride,
            extra_limit, extra_width, extra_slot_stride, extra_column_stride, extra_len_stride,
            (tile - own) * KEYS, extra_rows, EXTRA_LAYOUT, EXTRA_ALIGN, HARDWARE, HEADS, KEYS,
        )  # fmt: skip


@triton.jit
def _stats(stats, tile, end, own, skip, HEADS: tl.constexpr):
    """Maximum and sums of a tile, which are read one tile ahead. Shapes: -> f32 [HEADS] three times."""
    i = tl.arange(0, HEADS)
    at = stats + tl.where(tile < own, tile, tile + skip) * (STATS * HEADS) + i
    there = (i < HEADS) & (tile < end)
    own_peak = tl.load(at, there, other=NEVER)
    return own_peak, tl.load(at + HEADS, there, other=0.0), tl.load(at + 2 * HEADS, there, other=0.0)


@triton.jit
def _walk(
    acc, peak, total, rounded, t, weights, stats, first, begin, end, own, skip, length, extra_length,
    cache, slots, limit, stride, slot_stride, column_stride,
    extra, extra_slots, extra_limit, extra_stride, extra_slot_stride, extra_column_stride,
    ROTATED: tl.constexpr, BOTH: tl.constexpr, rows: tl.constexpr, LAYOUT: tl.constexpr, ALIGN: tl.constexpr,
    HARDWARE: tl.constexpr, HEADS: tl.constexpr, KEYS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Tiles begin .. end - 1, of one list or of both where pages are alike, folded into a block of channels.

    `skip`: tiles of the first list in the workspace that hold no key. Shapes: acc [HEADS, CHANNELS].
    """
    i = tl.arange(0, HEADS)
    block = i[:, None] * KEYS + tl.arange(0, KEYS)[None, :]
    top, added, added_rounded = _stats(stats, begin, end, own, skip, HEADS)
    for tile in range(begin, end):
        next_top, next_added, next_rounded = _stats(stats, tile + 1, end, own, skip, HEADS)
        mine = tile < own
        n = tl.where(mine, tile, tile - own) * KEYS + tl.arange(0, KEYS)
        if BOTH:  # a tile never straddles the lists, so these are choices of scalars
            row, scales, live = listed_rows(
                tl.where(mine, slots, extra_slots), t, n, tl.where(mine, length, extra_length),
                tl.where(mine, cache, extra), tl.where(mine, stride, extra_stride),
                tl.where(mine, limit, extra_limit), tl.where(mine, slot_stride, extra_slot_stride),
                tl.where(mine, column_stride, extra_column_stride), rows, LAYOUT,
            )  # fmt: skip
        else:
            row, scales, live = listed_rows(
                slots, t, n, tl.where(mine, length, extra_length), cache, stride, limit, slot_stride,
                column_stride, rows, LAYOUT,
            )  # fmt: skip
        k = piece(row, scales, live, first, CHANNELS, ROTATED, LAYOUT, ALIGN, HARDWARE)
        place = tl.where(mine, tile, tile + skip)
        w = widen(tl.load(weights + place * (HEADS * KEYS) + block))
        w, peak, total, rounded, past = fold(w, top, added, added_rounded, peak, total, rounded)
        acc = add_product(acc * past[:, None], w, k)
        top, added, added_rounded = next_top, next_added, next_rounded
    return acc, peak, total, rounded


@triton.jit
def _channels(
    t, weights, stats, first, cache, slots, lens, extra, extra_slots, extra_lens,
    limit, width, extra_limit, extra_width, stride, slot_stride, column_stride, len_stride,
    extra_stride, extra_slot_stride, extra_column_stride, extra_len_stride,
    ROTATED: tl.constexpr, rows: tl.constexpr, LAYOUT: tl.constexpr, ALIGN: tl.constexpr,
    EXTRA: tl.constexpr, extra_rows: tl.constexpr, EXTRA_LAYOUT: tl.constexpr, EXTRA_ALIGN: tl.constexpr,
    HARDWARE: tl.constexpr, HEADS: tl.constexpr, KEYS: tl.constexpr, CHANNELS: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """Both lists for one block of channels: unscaled sums, maximum, both sums of weights."""
    ALIKE: tl.constexpr = (LAYOUT == EXTRA_LAYOUT and ALIGN == EXTRA_ALIGN) and rows == extra_rows
    BOTH: tl.constexpr = EXTRA and ALIKE
    acc = tl.zeros([HEADS, CHANNELS], tl.float32)
    peak = tl.zeros([HEADS], tl.float32) + NEVER
    total = tl.zeros([HEADS], tl.float32)
    rounded = tl.zeros([HEADS], tl.float32)
    length = tl.maximum(tl.minimum(tl.load(lens + t * len_stride), width), 0)
    own = tl.cdiv(length, KEYS)
    skip = tl.cdiv(width, KEYS) - own
    extra_length = length
    tiles = own
    if EXTRA:
        extra_length = tl.maximum(tl.minimum(tl.load(extra_lens + t * extra_len_stride), extra_width), 0)
        tiles += tl.cdiv(extra_length, KEYS)
    if EARLY:
        wait_for_last()
    acc, peak, total, rounded = _walk(
        acc, peak, total, rounded, t, weights, stats, first, 0, tiles if BOTH else own, own, skip, length,
        extra_length, cache, slots, limit, stride, slot_stride, column_stride,
        extra, extra_slots, extra_limit, extra_stride, extra_slot_stride, extra_column_stride,
        ROTATED, BOTH, rows, LAYOUT, ALIGN, HARDWARE, HEADS, KEYS, CHANNELS,
    )  # fmt: skip
    if EXTRA and not ALIKE:
        acc, peak, total, rounded = _walk(
            acc, peak, total, rounded, t, weights, stats, first, own, tiles, own, skip, length,
            extra_length, extra, extra_slots, extra_limit, extra_stride, extra_slot_stride,
            extra_column_stride, extra, extra_slots, extra_limit, extra_stride, extra_slot_stride,
            extra_column_stride,
            ROTATED, False, extra_rows, EXTRA_LAYOUT, EXTRA_ALIGN, HARDWARE, HEADS, KEYS, CHANNELS,
        )  # fmt: skip
    return acc, peak, total, rounded


@triton.jit(do_not_specialize=DYNAMIC)
def use_weights_kernel(
    q, cache, slots, lens, extra, extra_slots, extra_lens, sink, out, lse, weights, stats, scale,
    parts, tiles, heads, limit, width, extra_limit, extra_width, q_stride, q_head_stride, out_stride,
    out_head_stride, stride, slot_stride, column_stride, len_stride,
    extra_stride, extra_slot_stride, extra_column_stride, extra_len_stride,
    rows: tl.constexpr, LAYOUT: tl.constexpr, ALIGN: tl.constexpr,
    EXTRA: tl.constexpr, extra_rows: tl.constexpr, EXTRA_LAYOUT: tl.constexpr, EXTRA_ALIGN: tl.constexpr,
    HARDWARE: tl.constexpr, HEADS: tl.constexpr, KEYS: tl.constexpr, CHANNELS: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """One program makes CHANNELS channels of the output for HEADS heads of a token."""
    pid = tl.program_id(0)
    first = pid % (512 // CHANNELS) * CHANNELS
    part = pid // (512 // CHANNELS)
    t = (part // parts).to(tl.int64)
    weights += part.to(tl.int64) * tiles * (HEADS * KEYS)
    stats += part.to(tl.int64) * tiles * (STATS * HEADS)
    h = (part % parts) * HEADS + tl.arange(0, HEADS)
    live = h < heads
    # Two programs in one: matrix units take keys in another order where one operand was bytes or bf16.
    if first >= 448:
        acc, peak, total, rounded = _channels(
            t, weights, stats, first, cache, slots, lens, extra, extra_slots, extra_lens,
            limit, width, extra_limit, extra_width, stride, slot_stride, column_stride, len_stride,
            extra_stride, extra_slot_stride, extra_column_stride, extra_len_stride,
            True, rows, LAYOUT, ALIGN, EXTRA, extra_rows, EXTRA_LAYOUT, EXTRA_ALIGN,
            HARDWARE, HEADS, KEYS, CHANNELS, EARLY,
        )  # fmt: skip
    else:
        acc, peak, total, rounded = _channels(
            t, weights, stats, first, cache, slots, lens, extra, extra_slots, extra_lens,
            limit, width, extra_limit, extra_width, stride, slot_stride, column_stride, len_stride,
            extra_stride, extra_slot_stride, extra_column_stride, extra_len_stride,
            False, rows, LAYOUT, ALIGN, EXTRA, extra_rows, EXTRA_LAYOUT, EXTRA_ALIGN,
            HARDWARE, HEADS, KEYS, CHANNELS, EARLY,
        )  # fmt: skip
    share, natural = finish(peak, total, rounded, tl.load(sink + h, live, other=0.0))
    store_piece(out + t * out_stride + h.to(tl.int64) * out_head_stride, acc, share, live, first, CHANNELS)
    if first == 0:
        tl.store(lse + t * heads + h, natural, live)


def run(
    arguments: tuple[Tensor, ...], scale: float, parts: int, numbers: tuple[int, ...], meta: dict[str, Any],
    start: bool = True,
) -> bool:  # fmt: skip
    """Both kernels: the arguments of `sparse_attention_kernel`, and a workspace for every tile's weights.

    `start` and the result are those of `launch`.
    """
    q = arguments[0]
    programs, tiles = q.shape[0] * parts, count(numbers, meta["KEYS"], meta["EXTRA"])
    rest = (*arguments, *workspace(q, programs * tiles, meta), scale, parts, tiles, *numbers)
    use, weigh = tuned("use_weights", q, programs=programs), tuned("weigh_keys", q)

    def users() -> list[dict[str, Any]]:
        return [{**meta, **row} for row in rows_of("use_weights", q)]

    def weighers() -> list[dict[str, Any]]:
        return [{**meta, "EARLY": bool(user.get("launch_pdl", 0)), **weigh} for user in users()]

    early = bool(use.get("launch_pdl", 0))  # of the second kernel, which the first one lets start
    first = launch(
        weigh_keys_kernel, programs * tiles, q, *rest, **meta, EARLY=early, **weigh, forms=weighers,
        start=start,
    )  # fmt: skip
    second = launch(
        use_weights_kernel, programs * (512 // use["CHANNELS"]), q, *rest, **meta, **use, forms=users,
        start=start,
    )  # fmt: skip
    return first or second


def run_hopper(
    arguments: tuple[Tensor, ...], scale: float, parts: int, numbers: tuple[int, ...], meta: dict[str, Any],
    start: bool = True,
) -> bool:  # fmt: skip
    """The same in Gluon: the first kernel also keeps rows in bf16, which the second has to copy only."""
    from dsv4core.kernels.triton._hopper_few import use_kept_kernel, weigh_hopper_kernel

    q, *lists, sink, out, lse = arguments
    heads, _, width, _, extra_width, *_ = numbers
    programs, tiles = q.shape[0] * parts, count(numbers, 64, meta["EXTRA"])
    weights, stats = workspace(q, programs * tiles, meta)
    use = tuned("use_kept", q, programs=programs)
    kept = torch.empty(q.shape[0] * tiles, 64, 512, dtype=torch.bfloat16, device=q.device)
    resident = use.pop("weighing", 0)  # programs of the first kernel that the device has at a time
    each = pieces(programs * tiles, resident) if resident else 1
    fixed = {"num_warps": 4, "launch_pdl": 1}

    def weighers() -> list[dict[str, Any]]:
        return [{"rows": meta["rows"], "SEVERAL": several, **fixed} for several in (False, True)]

    def users() -> list[dict[str, Any]]:
        found = [{"EXTRA": meta["EXTRA"], **fixed, **row} for row in rows_of("use_kept", q)]
        return [{k: v for k, v in row.items() if k != "weighing"} for row in found]

    first = launch(
        weigh_hopper_kernel, programs * pieces(tiles, each), q, q, *lists, weights, stats, kept, scale, parts,
        tiles, each, *numbers[:7], *numbers[9:], rows=meta["rows"], SEVERAL=each > 1, **fixed,
        forms=weighers, start=start,
    )  # fmt: skip
    second = launch(
        use_kept_kernel, programs * (512 // use["CHANNELS"]), q, weights, stats, kept, lists[2], lists[5],
        sink, out, lse, parts, tiles, heads, width, extra_width, *numbers[7:9], numbers[12], numbers[16],
        EXTRA=meta["EXTRA"], **fixed, **use, forms=users, start=start,
    )  # fmt: skip
    return first or second


def count(numbers: tuple[int, ...], keys: int, extra: bool) -> int:
    """Tiles of one token's lists."""
    return pieces(numbers[2], keys) + (pieces(numbers[4], keys) if extra else 0)


def workspace(q: Tensor, tiles: int, meta: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Weights of tiles, and their numbers."""
    heads, sums = meta["HEADS"], torch.float64 if interpreted else torch.float32  # `SUM`
    weights = torch.empty(tiles, heads, meta["KEYS"], dtype=torch.bfloat16, device=q.device)
    return weights, torch.empty(tiles, STATS.value, heads, dtype=sums, device=q.device)
