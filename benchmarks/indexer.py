"""Scores of all entries and the list of the best, fused."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from _pages import I32, ROWS, TOPK, random_pages, tables

from dsv4core.bench.case import Case
from dsv4core.layout import get_layout

HEADS = 64


def cases() -> Iterator[Case]:
    """64K entries with k = 512 as the peer can, then mxfp4, the k of V4-Pro, and several tokens."""
    yield indexer(65536)
    yield indexer(65536, "index_mxfp4")
    yield indexer(65536, k=1024)
    yield indexer(65536, tokens=8)


def indexer(
    entries: int, layout: str = "index_fp8", tokens: int = 1, k: int = TOPK, curve: str = "", x: str = ""
) -> Case:
    """Every token is a request of its own, with that many entries."""
    return Case(
        f"indexer {layout} T={tokens} n={entries} k={k}", "sparse_indexer",
        partial(_arguments, entries, layout, tokens, k), tokens * entries * get_layout(layout).record_bytes,
        2.0 * tokens * HEADS * entries * 128, {"tokens": tokens, "entries": entries, "k": k}, curve, x,
    )  # fmt: skip


def _arguments(entries: int, layout: str, tokens: int, k: int) -> dict[str, Any]:
    width = entries // ROWS
    q, scales = torch.randn(tokens, HEADS, 128).to(torch.float8_e4m3fn), None
    if layout == "index_mxfp4":
        q = torch.randint(0, 256, (tokens, HEADS, 64), dtype=torch.uint8)
        scales = torch.randint(120, 130, (tokens, HEADS, 4), dtype=torch.uint8)
    return {
        "q": q, "q_scales": scales, "weights": torch.randn(tokens, HEADS),
        "k_cache": random_pages(layout, tokens * width),
        "context_lens": torch.full((tokens,), entries, dtype=I32),
        "token_to_req": torch.arange(tokens, dtype=I32), "block_table": tables(tokens, width), "rows": ROWS,
        "layout": layout, "k": k, "workspace_bytes": 64 << 20,
    }  # fmt: skip
