"""Attention of single tokens straight over the pages: window list and compressed list, one softmax."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.kernels.triton import _attention_split
from dsv4core.kernels.triton._attention import (
    LOG2E,
    NEVER,
    finish,
    fold,
    listed_rows,
    query_pieces,
    row_pieces,
    store_piece,
    tile_scores,
    weigh,
)
from dsv4core.kernels.triton._launch import alignment, launch, pieces, supported
from dsv4core.kernels.triton._pages import MAIN
from dsv4core.kernels.triton._tuning import native_e4m3, tuned
from dsv4core.kernels.triton.numerics import add_product

NAME = "sparse_decode"
HOPPER = 64  # heads and keys of a tile in Gluon, whatever the table has for the other kernels


@triton.jit
def _attend_lists(
    qa, qb, qc, qr, a, b, c, r, peak, total, rounded, factor, t,
    cache, slots, lens, limit, width, stride, slot_stride, column_stride, len_stride,
    extra, extra_slots, extra_lens, extra_limit, extra_width, extra_stride, extra_slot_stride,
    extra_column_stride, extra_len_stride,
    BOTH: tl.constexpr, rows: tl.constexpr, LAYOUT: tl.constexpr, ALIGN: tl.constexpr,
    HARDWARE: tl.constexpr, KEYS: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    """All tiles of one list, or of both in one loop where pages are alike, into the running sums."""
    length = tl.minimum(tl.load(lens + t * len_stride), width)
    own = tl.cdiv(tl.maximum(length, 0), KEYS)
    tiles = own
    if BOTH:
        extra_length = tl.minimum(tl.load(extra_lens + t * extra_len_stride), extra_width)
        tiles += tl.cdiv(tl.maximum(extra_length, 0), KEYS)
    for tile in range(tiles):
        if BOTH:  # a tile never straddles the lists, so these are choices of scalars
            mine = tile < own
            n = tl.where(mine, tile, tile - own) * KEYS + tl.arange(0, KEYS)
            first, scales, live = listed_rows(
                tl.where(mine, slots, extra_slots), t, n, tl.where(mine, length, extra_length),
                tl.where(mine, cache, extra), tl.where(mine, stride, extra_stride),
                tl.where(mine, limit, extra_limit), tl.where(mine, slot_stride, extra_slot_stride),
                tl.where(mine, column_stride, extra_column_stride), rows, LAYOUT,
            )  # fmt: skip
        else:
            n = tile * KEYS + tl.arange(0, KEYS)
            first, scales, live = listed_rows(
                slots, t, n, length, cache, stride, limit, slot_stride, column_stride, rows, LAYOUT
            )
        ka, kb, kc, kr = row_pieces(first, scales, live, LAYOUT, ALIGN, HARDWARE)
        if APART:
            # A product whose result flows into another gets all warps over its rows, and Hopper would compute
            # 64 rows twice. Triton does not look through a `while`: this one runs always, and once.
            s = tl.zeros([qa.shape[0], KEYS], tl.float32)
            once = tile < tiles
            while once:
                s = tile_scores(qa, qb, qc, qr, ka, kb, kc, kr, live, factor)
                once = tile < 0
        else:
            s = tile_scores(qa, qb, qc, qr, ka, kb, kc, kr, live, factor)
        w, own_peak, added, added_rounded = weigh(s)
        w, peak, total, rounded, past = fold(w, own_peak, added, added_rounded, peak, total, rounded)
        a = add_product(a * past[:, None], w, ka)
        b = add_product(b * past[:, None], w, kb)
        c = add_product(c * past[:, None], w, kc)
        r = add_product(r * past[:, None], w, kr)
    return a, b, c, r, peak, total, rounded


@triton.jit(
    do_not_specialize=[
        "parts",
        "limit",
        "width",
        "extra_limit",
        "extra_width",
        "slots",
        "lens",
        "extra_slots",
        "extra_lens",
    ]
)
def sparse_attention_kernel(
    q, cache, slots, lens, extra, extra_slots, extra_lens, sink, out, lse, scale,
    parts, heads, limit, width, extra_limit, extra_width, q_stride, q_head_stride, out_stride,
    out_head_stride, stride, slot_stride, column_stride, len_stride,
    extra_stride, extra_slot_stride, extra_column_stride, extra_len_stride,
    rows: tl.constexpr, LAYOUT: tl.constexpr, ALIGN: tl.constexpr,
    EXTRA: tl.constexpr, extra_rows: tl.constexpr, EXTRA_LAYOUT: tl.constexpr, EXTRA_ALIGN: tl.constexpr,
    HARDWARE: tl.constexpr, HEADS: tl.constexpr, KEYS: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    """One program attends with HEADS heads of a token: the window list, then the compressed one."""
    pid = tl.program_id(0)
    t = (pid // parts).to(tl.int64)
    h = (pid % parts) * HEADS + tl.arange(0, HEADS)
    live = h < heads
    wide = h.to(tl.int64)
    qa, qb, qc, qr = query_pieces(q + t * q_stride + wide * q_head_stride, live)
    a = tl.zeros([HEADS, 256], tl.float32)
    b = tl.zeros([HEADS, 128], tl.float32)
    c = tl.zeros([HEADS, 64], tl.float32)
    r = tl.zeros([HEADS, 64], tl.float32)
    peak = tl.zeros([HEADS], tl.float32) + NEVER
    total = tl.zeros([HEADS], tl.float32)
    rounded = tl.zeros([HEADS], tl.float32)
    factor = scale * LOG2E
    SAME: tl.constexpr = (LAYOUT == EXTRA_LAYOUT and ALIGN == EXTRA_ALIGN) and rows == extra_rows
    BOTH: tl.constexpr = EXTRA and SAME
    a, b, c, r, peak, total, rounded = _attend_lists(
        qa, qb, qc, qr, a, b, c, r, peak, total, rounded, factor, t,
        cache, slots, lens, limit, width, stride, slot_stride, column_stride, len_stride,
        extra, extra_slots, extra_lens, extra_limit, extra_width, extra_stride, extra_slot_stride,
        extra_column_stride, extra_len_stride, BOTH, rows, LAYOUT, ALIGN, HARDWARE, KEYS, APART,
    )  # fmt: skip
    if EXTRA and not BOTH:
        a, b, c, r, peak, total, rounded = _attend_lists(
            qa, qb, qc, qr, a, b, c, r, peak, total, rounded, factor, t,
            extra, extra_slots, extra_lens, extra_limit, extra_width, extra_stride, extra_slot_stride,
            extra_column_stride, extra_len_stride,
            extra, extra_slots, extra_lens, extra_limit, extra_width, extra_stride, extra_slot_stride,
            extra_column_stride, extra_len_stride,
            False, extra_rows, EXTRA_LAYOUT, EXTRA_ALIGN, HARDWARE, KEYS, APART,
        )  # fmt: skip
    share, sums = finish(peak, total, rounded, tl.load(sink + h, live, other=0.0))
    target = out + t * out_stride + wide * out_head_stride
    store_piece(target, a, share, live, 0, 256)
    store_piece(target, b, share, live, 256, 128)
    store_piece(target, c, share, live, 384, 64)
    store_piece(target, r, share, live, 448, 64)
    tl.store(lse + t * heads + h, sums, live)


def attend(
    q: Tensor, main: dict[str, Any], extra: dict[str, Any] | None, sink: Tensor, out: Tensor, scale: float,
    side_by_side: bool | None = None,
) -> Tensor:  # fmt: skip
    """Attention over one or two lists of rows, each a dict of `listed`; writes `out`, returns lse.

    How the work is cut depends on how much there is; what comes out does not (`_attention_split`).
    `side_by_side` decides instead, for tests and measurements.
    """
    tokens, heads, _ = q.shape
    lse = sink.new_empty(tokens, heads)
    cut = tuned("sparse_attention", q, heads=heads)
    few, resident = cut.pop("few"), cut.pop("hopper", 0)
    other = extra or main
    gluon = resident and _in_words(q, main) and _in_words(q, other) and main["rows"] == other["rows"]
    size, keys = (HOPPER, HOPPER) if gluon else (cut["HEADS"], cut["KEYS"])
    arguments = (
        q, main["cache"], main["slots"], main["lens"], other["cache"], other["slots"], other["lens"], sink,
        out, lse,
    )  # fmt: skip
    numbers = (
        heads, main["limit"], main["width"], other["limit"], other["width"], q.stride(0), q.stride(1),
        out.stride(0), out.stride(1), *main["strides"], *other["strides"],
    )  # fmt: skip
    meta = {
        "rows": main["rows"], "LAYOUT": main["layout"], "ALIGN": main["align"], "EXTRA": extra is not None,
        "extra_rows": other["rows"], "EXTRA_LAYOUT": other["layout"], "EXTRA_ALIGN": other["align"],
        "HARDWARE": native_e4m3(q),
    }  # fmt: skip
    parts = pieces(heads, size)
    tiles = pieces(main["width"], keys) + (pieces(extra["width"], keys) if extra else 0)
    # In Gluon rows of a token are decoded for all of its heads: tokens count. Else programs do.
    work = tokens if gluon else tokens * parts
    split = work <= few and tiles > 2 if side_by_side is None else side_by_side
    tiled = {**meta, "HEADS": size, "KEYS": keys}

    def run(split: bool, arguments: tuple[Tensor, ...], start: bool = True) -> bool:
        if split:
            both = _attention_split.run_hopper if gluon else _attention_split.run
            return both(arguments, scale, parts, numbers, tiled, start)
        work = arguments[0].shape[0] * parts
        if gluon:
            from dsv4core.kernels.triton._hopper_decode import decode_hopper_kernel

            return launch(
                decode_hopper_kernel, min(work, resident), q, *arguments, scale, work, parts, *numbers,
                rows=main["rows"], EXTRA=extra is not None, num_warps=4, launch_pdl=1, start=start,
            )  # fmt: skip
        return launch(
            sparse_attention_kernel, work, q, *arguments, scale, parts, *numbers, **meta, **cut, start=start
        )

    first = run(split and tiles > 0, arguments)
    if first and few and tiles > 2 and side_by_side is None:  # batches of another size take the other form
        run(not split, (q[:1], *arguments[1:]), start=False)
    return lse


def _in_words(q: Tensor, of: dict[str, Any]) -> bool:
    """Whether `_hopper_decode` takes such rows: of one layout, and read several bytes at a time."""
    return of["layout"] == "fp8_ds_mla" and whole_words(q) and whole_words(of["cache"])


def whole_words(x: Tensor) -> bool:
    """Whether a compiler knows of every row that it starts at a multiple of 16 bytes."""
    return x.data_ptr() % 16 == 0 and all(stride % 16 == 0 for stride in x.stride()[:-1])


def listed(cache: Tensor, slots: Tensor, lens: Tensor, rows: int, layout: str) -> dict[str, Any]:
    """One list of rows as `attend` takes it."""
    return {
        "cache": cache, "slots": slots, "lens": lens, "rows": rows, "layout": layout,
        "align": alignment(cache), "limit": min(cache.shape[0] * rows, 2**31 - 1), "width": slots.shape[1],
        "strides": (cache.stride(0), slots.stride(0), slots.stride(1), lens.stride(0)),
    }  # fmt: skip


def require_bf16(op: str, **tensors: Tensor) -> None:
    """f32 attention is profile `math`, which the CPU backend has."""
    for name, tensor in tensors.items():
        if tensor.dtype != torch.bfloat16:
            raise OpArgumentError(op, name, "torch.bfloat16; the cpu backend has float32", str(tensor.dtype))


def sparse_decode(
    q: Tensor, swa_cache: Tensor, swa_slots: Tensor, swa_lens: Tensor, extra_cache: Tensor | None,
    extra_slots: Tensor | None, extra_lens: Tensor | None, attn_sink: Tensor, out: Tensor, *,
    scale: float, swa_rows: int, extra_rows: int, layout: str, extra_layout: str,
) -> Tensor:  # fmt: skip
    """Attend to the listed rows of both caches; K and V are the same row.

    Shapes: q bf16 [T, H, 512], swa_cache u8 [N, B], swa_slots i32 [T, Ks], swa_lens i32 [T]; extra_cache,
    extra_slots and extra_lens the same for the compressed cache, or None; attn_sink f32 [H], out bf16
    [T, H, 512] (written) -> lse f32 [T, H], natural log, without the sink, +inf for an empty row.
    """
    supported(NAME, "layout", layout, MAIN)
    require_bf16(NAME, q=q, out=out)
    extra = None
    if extra_cache is not None:
        if extra_slots is None or extra_lens is None:
            lacking = "extra_slots" if extra_slots is None else "extra_lens"
            raise OpArgumentError(NAME, lacking, "a tensor, since there is an extra_cache", "None")
        supported(NAME, "extra_layout", extra_layout, MAIN)
        extra = listed(extra_cache, extra_slots, extra_lens, extra_rows, extra_layout)
    main = listed(swa_cache, swa_slots, swa_lens, swa_rows, layout)
    return attend(q, main, extra, attn_sink, out, scale)
