"""Calls of real size for the benchmark of the Triton kernels, and how they are timed on a cold cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from statistics import median
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv4core.bench.timing import in_turn, timer
from dsv4core.kernels.triton import sparse_decode
from dsv4core.layout import get_layout

DEVICE = "cuda"
COLD = 256 << 20  # bytes that a round touches: several times the last-level cache
Arguments = dict[str, Any]


def kernel(op: str) -> Callable[..., Any]:
    """The launcher of an op."""
    return getattr(import_module(f"dsv4core.kernels.triton.{op}"), op)


def volume(*tensors: Tensor | None) -> int:
    """Bytes of tensors."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def paged(layout: str, count: int, rows: int, device: str) -> Tensor:
    """Pages of encoded noise; a few distinct ones repeated, since only their bytes travel."""
    found = get_layout(layout)
    few = min(count, 64)
    base = found.encode_pages(torch.randn(few, rows, found.values, device=device).bfloat16())
    return base.repeat(-(-count // few), 1)[:count].contiguous()


def decode_calls(batch: int, heads: int, extra: int, layout: str, cold: int = COLD) -> list[Arguments]:
    """Calls whose requests own shuffled pages of one pool; together they touch `cold` bytes."""
    own, more = 3, -(-extra // 64) + 1
    per_call = batch * (own + more)
    found = get_layout(layout)
    # A call touches part of its pages, and one alone would find its own again: two at least when cold.
    count = min(512, max(2 if cold > 1 else 1, cold // (per_call * found.page_bytes(64))))
    pool = paged(layout, per_call * count, 64, DEVICE)
    order = torch.randperm(per_call * count, device=DEVICE).view(count, batch, own + more)
    sink = torch.randn(heads, device=DEVICE)

    def slots(pages: Tensor, number: int) -> Tensor:
        chosen = torch.rand(batch, pages.shape[1] * 64, device=DEVICE).argsort(1)[:, :number].sort(1).values
        return (pages.gather(1, chosen // 64) * 64 + chosen % 64).to(torch.int32)

    calls: list[Arguments] = []
    for pages in order:
        q = torch.randn(batch, heads, 512, device=DEVICE).bfloat16()
        calls.append({
            "q": q, "swa_cache": pool, "swa_slots": slots(pages[:, :own], 128), "swa_lens": lens(batch, 128),
            "extra_cache": pool, "extra_slots": slots(pages[:, own:], extra),
            "extra_lens": lens(batch, extra), "attn_sink": sink, "out": torch.empty_like(q),
            "scale": 512**-0.5, "swa_rows": 64, "extra_rows": 64, "layout": layout, "extra_layout": layout,
        })  # fmt: skip
    return calls


def prefill_call(heads: int, keys: int, tokens: int = 4096, rows: int = 32768) -> Arguments:
    """Queries over rows of a workspace chosen at random."""
    q = torch.randn(tokens, heads, 512, device=DEVICE).bfloat16()
    return {
        "q": q, "kv": torch.randn(rows, 512, device=DEVICE).bfloat16(),
        "indices": torch.randint(0, rows, (tokens, keys), dtype=torch.int32, device=DEVICE),
        "lens": lens(tokens, keys), "attn_sink": torch.randn(heads, device=DEVICE),
        "out": torch.empty_like(q), "scale": 512**-0.5,
    }  # fmt: skip


def lens(batch: int, value: int) -> Tensor:
    """The same length for every row."""
    return torch.full((batch,), value, dtype=torch.int32, device=DEVICE)


def cut(call: Arguments, out: Tensor, side_by_side: bool | None) -> Tensor:
    """`sparse_decode` with the way of cutting chosen."""
    main = sparse_decode.listed(
        call["swa_cache"], call["swa_slots"], call["swa_lens"], call["swa_rows"], call["layout"]
    )
    extra = sparse_decode.listed(
        call["extra_cache"], call["extra_slots"], call["extra_lens"], call["extra_rows"], call["extra_layout"]
    )
    return sparse_decode.attend(call["q"], main, extra, call["attn_sink"], out, call["scale"], side_by_side)


def compress_call(tokens: int, ratio: int, layout: str, device: str) -> Arguments:
    """One request of `tokens` positions with its states; every boundary closes a window."""
    found = get_layout(layout)
    dim = found.width or 0
    width, rows = dim * (2 if ratio == 4 else 1), 4 if ratio == 4 else 8
    pages, entries = -(-tokens // rows), tokens // ratio
    t = torch.arange(tokens, device=device)
    return {
        "state_cache": torch.randn(pages, rows, 2 * width, device=device), "positions": t,
        "token_to_req": torch.zeros(tokens, dtype=torch.int32, device=device), "slot_mapping": t.clone(),
        "block_table": torch.randperm(pages, device=device).to(torch.int32).view(1, -1),
        "cos_sin": torch.randn(tokens, 64, device=device),
        "norm_weight": torch.randn(dim, device=device).bfloat16(),
        "k_cache": torch.zeros(-(-entries // 64), found.page_bytes(64), dtype=torch.uint8, device=device),
        "kv_slot_mapping": torch.where((t + 1) % ratio == 0, t // ratio, -1), "ratio": ratio,
        "head_dim": dim, "rows": 64, "layout": layout, "eps": 1e-6, "rotate": found.rotate,
    }  # fmt: skip


def copies(call: Arguments, size: int) -> list[Arguments]:
    """The call and clones of it, so that a round touches `COLD` bytes."""
    count = max(1, min(16, -(-COLD // max(size, 1))))
    return [
        {k: v.clone() if isinstance(v, Tensor) and v.is_contiguous() else v for k, v in call.items()}
        for _ in range(count)
    ]


@triton.jit
def copy_kernel(x, y, n, BLOCK: tl.constexpr):
    """An elementwise copy: a memcpy node of a graph is slower and no yardstick."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, i < n), i < n)


def timed(calls: Sequence[Callable[[], Any]], rounds: int = 20) -> tuple[float, float]:
    """Median microseconds of one call in a graph of all calls, and what one costs the host to start."""
    call, count = in_turn(calls), len(calls)
    for _ in range(2):
        call()
    started = timer("launch", DEVICE)(call, count)
    graph = timer("graph", DEVICE)
    return 1e6 * median(graph(call, count) for _ in range(rounds)), 1e6 * started
