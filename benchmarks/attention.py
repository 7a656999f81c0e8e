"""Decode over pages and prefill over a workspace: 128 window rows and 512 entries per token.

Both read 256 MiB of shuffled pages; the workspace of a prefill holds the rows of as many. Curves over tokens
and heads are in `curves.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import torch
from _pages import BF16, I32, ROWS, TOPK, WINDOW, cache_pages
from torch import Tensor

from dsv4core.bench.case import Case
from dsv4core.layout import get_layout

LAYOUT, MIB = "fp8_ds_mla", 256
KEYS = WINDOW + TOPK
SCALE = 512**-0.5


def cases() -> Iterator[Case]:
    """T = 1, 8, 64 tokens with 64 and 128 heads; few heads; a layer whose tokens list the same entries."""
    for heads in (64, 128):
        for tokens in (1, 8, 64):
            yield decode(tokens, heads)
    yield decode(64, 8)
    for heads in (64, 128):
        for tokens in (1, 8, 64):
            yield prefill(tokens, heads)
    for heads in (16, 64):
        yield prefill(64, heads, 4096)


def decode(tokens: int, heads: int, curve: str = "", x: str = "") -> Case:
    """Single tokens, each with rows of its own."""
    facts = {"tokens": tokens, "heads": heads}
    return Case(
        f"decode T={tokens} H={heads}", "sparse_decode", partial(_decode, tokens, heads),
        tokens * (KEYS * get_layout(LAYOUT).record_bytes + 2 * heads * 1024),
        4.0 * tokens * heads * KEYS * 512, facts, curve, x,
    )  # fmt: skip


def prefill(tokens: int, heads: int, common: int = 0) -> Case:
    """A chunk whose window moves with the token.

    Entries are chosen freely, or are the same `common` ones for every token, as in a layer of ratio 128.
    """
    entries, keys = common or tokens * TOPK, (common or TOPK) + WINDOW
    read = min(tokens * keys, tokens + WINDOW + entries)
    return Case(
        f"prefill T={tokens} H={heads}" + (f", the same {common}" if common else ""), "sparse_prefill",
        partial(_prefill, tokens, heads, common), (read + 2 * tokens * heads) * 1024,
        4.0 * tokens * heads * keys * 512, {"tokens": tokens, "heads": heads},
    )  # fmt: skip


@cache
def _pages() -> Tensor:
    return cache_pages(LAYOUT, MIB)


def _common(tokens: int, heads: int) -> dict[str, Any]:
    q = torch.randn(tokens, heads, 512).to(BF16)
    return {"q": q, "attn_sink": torch.randn(heads), "out": torch.zeros_like(q), "scale": SCALE}


def _decode(tokens: int, heads: int) -> dict[str, Any]:
    pages = _pages()
    window, entries = (torch.randint(0, len(pages) * ROWS, (tokens, n)).to(I32) for n in (WINDOW, TOPK))
    return {
        **_common(tokens, heads), "swa_cache": pages, "swa_slots": window,
        "swa_lens": torch.full((tokens,), WINDOW, dtype=I32), "extra_cache": pages, "extra_slots": entries,
        "extra_lens": torch.full((tokens,), TOPK, dtype=I32), "swa_rows": ROWS, "extra_rows": ROWS,
        "layout": LAYOUT, "extra_layout": LAYOUT,
    }  # fmt: skip


@cache
def _workspace() -> Tensor:
    """The rows of all pages, as a gather leaves them."""
    some = get_layout(LAYOUT).decode_pages(_pages()[:64], ROWS).view(-1, 512)
    return some.repeat(len(_pages()) // 64, 1)


def _prefill(tokens: int, heads: int, common: int) -> dict[str, Any]:
    kv = _workspace()
    closed = len(kv) - tokens - WINDOW
    window = closed + torch.arange(tokens).unsqueeze(1) + torch.arange(1, WINDOW + 1)
    lists = (1, common) if common else (tokens, TOPK)
    entries = torch.randint(0, closed, lists).sort(1).values.expand(tokens, -1)
    indices = torch.cat((entries, window), 1).to(I32)
    return {
        **_common(tokens, heads), "kv": kv, "indices": indices,
        "lens": torch.full((tokens,), indices.shape[1], dtype=I32),
    }  # fmt: skip
