"""Decode over a pool of bf16 rows, or over packed block caches on gfx950."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from aiter.form import Refused, arch, need, number, starts, told, typed
from aiter.softmax import Part, finish, part
from dsv4core.layout import get_layout

TILE = 16  # keys a step of the portable kernel, which decides what it leaves unwritten
Fetch = Callable[[list[int]], Tensor]


def pa_decode_sparse(
    q, unified_kv, kv_indices, kv_indptr, attn_sink, softmax_scale, kv_scales=None, block_h=None,
    kv_splits=None, has_invalid=True, skip_reduce=False, USE_EXP2=None, *, extra_cache=None,
    extra_indices=None, extra_indptr=None,
):  # fmt: skip
    """Output [N, H, 512], or parts (acc, m, l) with skip_reduce and more than one split."""
    if kv_scales is not None or block_h is not None or USE_EXP2 is not None:
        raise Refused("the stand-in has neither fp8 pools nor tuning arguments")
    bf16 = isinstance(q, Tensor) and q.dtype == torch.bfloat16 and q.ndim == 3 and q.stride(2) == 1
    need(bf16, "decode.query_dtype", told(q))
    scale = number(softmax_scale, "decode.query_dtype")
    sink = typed(attn_sink, torch.float32, 1, "decode.sink")
    need(sink.shape[0] == q.shape[1], "decode.sink", told(sink))
    gfx950 = arch() == "gfx950"
    need(gfx950 or (extra_cache, extra_indices, extra_indptr) == (None,) * 3, "decode.extra_packed_only", "")
    lists = [_list(unified_kv, kv_indices, kv_indptr, q.shape[0], has_invalid, gfx950)]
    if extra_cache is not None:
        lists.append(_list(extra_cache, extra_indices, extra_indptr, q.shape[0], has_invalid, gfx950))
    splits = kv_splits or 1
    pieces = [_pieces(q[t], lists, t, splits, scale, gfx950) for t in range(q.shape[0])]
    if skip_reduce and splits > 1:
        padded = q.shape[1] if gfx950 else -(-q.shape[1] // 16) * 16
        return _parts(pieces, q.shape[0], splits, q.shape[1], padded)
    out = torch.empty_like(q)
    for t, mine in enumerate(pieces):
        written = [piece for piece in mine if piece is not None]
        out[t] = finish(written, sink).bfloat16() if written else torch.nan
    return out


def _list(
    cache: object, indices: object, indptr: object, rows: int, has_invalid: bool, gfx950: bool
) -> tuple[Fetch, list[list[int]]]:
    """How to read the cache, and the indices of every row."""
    flat = typed(indices, torch.int32, 1, "decode.indices_int32")
    begins = starts(indptr, rows, flat.shape[0], "decode.starts_int32", "decode.starts")
    assert isinstance(cache, Tensor)
    if cache.ndim == 2:
        need(cache.dtype == torch.bfloat16 and cache.shape[1] == 512, "decode.pool_dtype", told(cache))
        need(cache.stride(1) == 1, "decode.pool", told(cache))
        count, fetch = cache.shape[0], lambda found: cache[torch.tensor(found, dtype=torch.int64)]
    else:
        need(gfx950 and cache.ndim == 3, "decode.block_cache", told(cache))
        count, fetch = cache.shape[0] * cache.shape[1], _block_reader(cache)
    used = [[int(n) for n in flat[a:b]] for a, b in pairwise(begins)]
    for n in (n for row in used for n in row):
        need(n >= 0 or (n == -1 and has_invalid), "decode.sentinel", n)
        need(n < count, "decode.tail_bounds", f"{n} of {count}")
    return fetch, used


def _block_reader(cache: Tensor) -> Fetch:
    blocks, rows, width = cache.shape
    packed = cache.dtype == torch.uint8
    need(packed or cache.dtype == torch.bfloat16, "decode.block_dtype", told(cache))
    need(width == (584 if packed else 512) and cache.stride(1) == width, "decode.packed_size", told(cache))
    pages = cache.view(torch.uint8)
    size = rows * pages.shape[2]
    flat = pages.as_strided((blocks, size), (pages.stride(0), 1))
    layout = get_layout("fp8_ds_mla" if packed else "bf16_row")
    return lambda found: layout.decode(layout.read(flat, torch.tensor(found, dtype=torch.int64), rows))


def _pieces(
    q: Tensor, lists: list[tuple[Fetch, list[list[int]]]], t: int, splits: int, scale: float, gfx950: bool
) -> list[Part | None]:
    """The parts of one row; None where the kernel leaves a part unwritten."""
    found: list[Part | None] = []
    for split in range(splits):
        keys: list[Tensor] = []
        for fetch, rows in lists:
            row = rows[t]
            size = -(-len(row) // splits) if gfx950 else -(-len(row) // (splits * TILE)) * TILE
            if not gfx950 and split * size >= len(row):
                break
            keys.append(fetch([n for n in row[split * size : (split + 1) * size] if n >= 0]))
        found.append(part(q, torch.cat(keys), scale) if keys else None)
    return found


def _parts(
    pieces: list[list[Part | None]], rows: int, splits: int, heads: int, padded: int
) -> tuple[Tensor, Tensor, Tensor]:
    acc = torch.full((rows, splits, padded, 512), torch.nan)
    m, total = torch.full((2, rows, splits, padded), torch.nan)
    for t, mine in enumerate(pieces):
        for s, piece in enumerate(mine):
            if piece is not None:
                acc[t, s, :heads], m[t, s, :heads], total[t, s, :heads] = piece
    return acc, m, total
