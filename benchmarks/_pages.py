"""Pages of legal rows that lie all over a cache, as after hours of serving."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4core.layout import get_layout

ROWS, WINDOW, TOPK = 64, 128, 512
BF16, I32 = torch.bfloat16, torch.int32


def random_pages(layout: str, count: int) -> Tensor:
    """Pages of random rows: one encoded set, repeated; which page is read where is shuffled."""
    found = get_layout(layout)
    some = found.encode_pages(torch.randn(64, ROWS, found.values))
    return some.repeat(-(-count // 64), 1)[:count]


def cache_pages(layout: str, mib: int) -> Tensor:
    """Pages of that many MiB."""
    return random_pages(layout, (mib << 20) // get_layout(layout).page_bytes(ROWS))


def tables(requests: int, width: int, pages: int | None = None) -> Tensor:
    """Every request owns `width` pages all over the cache. Shapes: -> i32 [requests, width]."""
    return torch.randperm(pages or requests * width)[: requests * width].view(requests, width).to(I32)
