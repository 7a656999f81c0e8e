"""Calls of ops with what adapters get wrong: holes, empty rows, strides, infinite sinks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsv4core.layout import get_layout
from dsv4core.ops import OPS

I32 = torch.int32
HEADS = 6


def pages(layout: str, count: int, rows: int, gap: int, seed: int) -> Tensor:
    """Encoded random pages inside a poisoned allocation, `gap` bytes behind each."""
    found = get_layout(layout)
    g = torch.Generator().manual_seed(seed)
    made = found.encode_pages(torch.randn(count, rows, found.values, generator=g).bfloat16())
    parent = torch.full((count * (made.shape[1] + gap),), 0xA5, dtype=torch.uint8)
    view = parent.as_strided(made.shape, (made.shape[1] + gap, 1))
    view.copy_(made)
    return view


def decode(
    layout: str, extra_layout: str = "", *, rows: int = 4, extra_rows: int = 2, gap: int = 0, seed: int = 5
) -> dict[str, Any]:
    """Five tokens: holes, a slot behind the last page, a short list, none at all, the extra list alone."""
    g = torch.Generator().manual_seed(seed)
    extra_layout = extra_layout or layout
    swa = torch.randint(0, 20 * rows, (5, 70), generator=g, dtype=I32)
    swa[0, 5:60:7] = -1
    swa[1, 3] = 20 * rows + 5
    extra = torch.randint(0, 60 * extra_rows, (5, 150), generator=g, dtype=I32)
    extra[0, ::3] = -7
    q = torch.randn(5, HEADS, 512, generator=g).bfloat16()
    sink = torch.randn(HEADS, generator=g)
    sink[0], sink[-1] = torch.inf, -torch.inf
    return {
        "q": q, "swa_cache": pages(layout, 20, rows, gap, 1), "swa_slots": swa,
        "swa_lens": torch.tensor([70, 17, 1, 0, 0], dtype=I32),
        "extra_cache": pages(extra_layout, 60, extra_rows, gap, 2), "extra_slots": extra,
        "extra_lens": torch.tensor([149, 0, 0, 0, 33], dtype=I32), "attn_sink": sink,
        "out": torch.full_like(q, 3.0), "scale": 512**-0.5, "swa_rows": rows, "extra_rows": extra_rows,
        "layout": layout, "extra_layout": extra_layout,
    }  # fmt: skip


def without_extra(call: dict[str, Any]) -> dict[str, Any]:
    return {**call, "extra_cache": None, "extra_slots": None, "extra_lens": None}


def prefill(seed: int = 9) -> dict[str, Any]:
    """Four queries over a workspace with a row of NaN that nobody lists."""
    g = torch.Generator().manual_seed(seed)
    kv = torch.randn(200, 512, generator=g).bfloat16()
    kv[150] = torch.nan
    indices = torch.randint(-2, 150, (4, 140), generator=g, dtype=I32)
    indices[1, 3] = 200
    q = torch.randn(4, HEADS, 512, generator=g).bfloat16()
    sink = torch.randn(HEADS, generator=g)
    sink[0], sink[-1] = torch.inf, -torch.inf
    return {
        "q": q, "kv": kv, "indices": indices, "lens": torch.tensor([140, 64, 0, 1], dtype=I32),
        "attn_sink": sink, "out": torch.full_like(q, 3.0), "scale": 512**-0.5,
    }  # fmt: skip


def logits(requests: int = 1, rows: int = 4, gap: int = 12, seed: int = 3) -> dict[str, Any]:
    """Three tokens over one request's entries on shuffled pages; the last page is unmapped."""
    g = torch.Generator().manual_seed(seed)
    table = torch.randperm(12, generator=g, dtype=I32)[:10].repeat(requests, 1)
    table[:, 9] = -1
    return {
        "q": torch.randn(3, 8, 128, generator=g).to(torch.float8_e4m3fn), "q_scales": None,
        "weights": torch.randn(3, 8, generator=g), "k_cache": pages("index_fp8", 12, rows, gap, 8),
        "context_lens": torch.tensor([9 * rows, 0, 7], dtype=I32),
        "token_to_req": torch.zeros(3, dtype=I32), "block_table": table, "rows": rows,
        "layout": "index_fp8", "max_len": 9 * rows, "rotate": "none",
    }  # fmt: skip


def topk() -> dict[str, Any]:
    """Ties, zeros of both signs, rows shorter than k, NaN behind a row's end."""
    g = torch.Generator().manual_seed(4)
    scores = torch.randint(-3, 4, (5, 40), generator=g).float()
    scores[0] = torch.where(torch.arange(40) % 2 == 0, 0.0, -0.0)
    scores[1, 30:] = torch.nan
    lens = torch.tensor([40, 30, 3, 0, 39], dtype=I32)
    return {"logits": scores, "context_lens": lens, "k": 8}


def copied(call: dict[str, Any]) -> dict[str, Any]:
    """The same call with an output of its own."""
    return {**call, "out": call["out"].clone()} if "out" in call else dict(call)


def expected(op: str, call: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Result and output of the core's portable body."""
    mine = copied(call)
    return OPS[op].body(**mine), mine.get("out")


def close(mine: Tensor, other: Tensor) -> bool:
    """Whether attention outputs agree: half of the contract's bound, per token and head."""
    gap = (mine.float() - other.float()).norm(dim=-1)
    return bool((gap <= 4e-3 * other.float().norm(dim=-1)).all())
