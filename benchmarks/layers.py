"""One decoded token through a whole layer of V4-Flash, of every kind, over the length of its context.

The caches hold random rows; nothing is prefilled. What a step must move: every weight once, the rows of its
window and its entries, for a ratio-4 layer all index keys, and 1 / 128 of the context for a ratio-128 layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, lru_cache, partial
from typing import Any

import torch
from _pages import TOPK, WINDOW, random_cache
from torch import Tensor

from dsv4core import AttentionConfig, AttentionWeights
from dsv4core.attention import DeepseekV4Attention
from dsv4core.backend import Backend
from dsv4core.bench.case import Case
from dsv4core.layout import get_layout

CONTEXTS = (1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20)


def cases() -> Iterator[Case]:
    """1K to 1M tokens of context; the first layer of each kind."""
    config = AttentionConfig.preset("v4-flash")
    kinds = {config.layer(i).kind: i for i in reversed(range(len(config.compress_ratios)))}
    for kind in ("swa", "csa", "hca"):
        for context in CONTEXTS:
            yield Case(
                f"{kind} layer, context {context}", "decode step", partial(dict, context=context),
                moved(config, kinds[kind], context), 2.0 * _weights(kinds[kind])[1],
                {"context": context}, f"decode step, {kind} layer", "context", partial(_start, kinds[kind]),
            )  # fmt: skip


def moved(config: AttentionConfig, layer: int, context: int) -> float:
    """Bytes that one token has to read."""
    main, index = (get_layout(name).record_bytes for name in (config.main_layout, config.index_layout))
    ratio = config.layer(layer).ratio
    entries = {0: 0, 4: min(context // 4, TOPK), 128: context // 128}[ratio]
    keys = context // 4 * index if ratio == 4 else 0
    return _weights(layer)[0] + (min(context, WINDOW) + entries) * main + keys


@cache
def _weights(layer: int) -> tuple[int, int]:
    """Bytes and numbers of a layer's weights."""
    found = AttentionWeights.random(AttentionConfig.preset("v4-flash"), layer, seed=0).state_dict().values()
    return sum(w.numel() * w.element_size() for w in found), sum(w.numel() for w in found if w.dim() > 1)


@cache
def _attention(backend: Backend, layer: int) -> DeepseekV4Attention:
    config = AttentionConfig.preset("v4-flash")
    return backend.attention(config, layer, AttentionWeights.random(config, layer, seed=0))


_cache = lru_cache(maxsize=1)(random_cache)


def _start(layer: int, backend: Backend, arguments: dict[str, Any]) -> Callable[[], Tensor]:
    """The step. It writes the same rows at every call."""
    attention = _attention(backend, layer)
    pages, plan = _cache(attention.config, (layer,), arguments["context"])
    hidden = torch.randn(1, attention.config.hidden_size, generator=torch.Generator().manual_seed(0))
    rows = hidden.to(attention.dtype)
    return lambda: attention(rows, pages, plan)
