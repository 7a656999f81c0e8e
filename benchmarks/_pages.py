"""Pages of legal rows that lie all over a cache, as after hours of serving."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4core import AttentionConfig, BatchPlan, PagedCache
from dsv4core.cache import cache_specs
from dsv4core.cache.specs import layout_of
from dsv4core.cache.zeroed import zeroed
from dsv4core.layout import get_layout

ROWS, WINDOW, TOPK = 64, 128, 512
BF16, I32 = torch.bfloat16, torch.int32


def random_pages(layout: str, count: int) -> Tensor:
    """Pages of random rows, in memory as `PagedCache` makes it; which page is read where is shuffled.

    One encoded set, repeated.
    """
    found = get_layout(layout)
    some = found.encode_pages(torch.randn(64, ROWS, found.values))
    pages = zeroed(count * some.shape[1], torch.device("cpu")).view(count, -1)
    for start in range(0, count, len(some)):
        pages[start : start + len(some)] = some[: count - start]
    return pages


def cache_pages(layout: str, mib: int) -> Tensor:
    """Pages of that many MiB."""
    return random_pages(layout, (mib << 20) // get_layout(layout).page_bytes(ROWS))


def tables(requests: int, width: int, pages: int | None = None) -> Tensor:
    """Every request owns `width` pages all over the cache. Shapes: -> i32 [requests, width]."""
    return torch.randperm(pages or requests * width)[: requests * width].view(requests, width).to(I32)


def random_cache(
    config: AttentionConfig, layers: tuple[int, ...], context: int
) -> tuple[PagedCache, BatchPlan]:
    """Caches of one request whose last of `context` tokens is about to be decoded, and the plan of it.

    Rows are random, pages lie in any order; of what slides there is what the step reads.
    """
    tensors: dict[str, Tensor] = {}
    mapped: dict[str, Tensor] = {}
    for spec in (spec for layer in layers for spec in cache_specs(config, layer)):
        width = -(-context // spec.tokens_per_page)
        count = width if spec.sliding is None else min(width, spec.sliding // spec.tokens_per_page + 2)
        layout = layout_of(spec)
        some = layout.encode_pages(torch.randn(min(count, 16), spec.rows, layout.values))
        pages = tensors[spec.key] = zeroed(count * spec.page_bytes, torch.device("cpu")).view(count, -1)
        for start in range(0, count, len(some)):
            part = pages[start : start + len(some), : some.shape[1]]
            part.copy_(some[: len(part)])
        if spec.group not in mapped:
            mapped[spec.group] = torch.cat(
                (torch.full((1, width - count), -1, dtype=I32), tables(1, count)), 1
            )
    plan = BatchPlan.build(config, query_lens=[1], seq_lens=[context], tables=mapped)
    return PagedCache.from_tensors(config, tensors), plan
