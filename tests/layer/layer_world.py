"""Tiny layers through the public names only, and hidden rows that depend on request and position."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dsv4core import AttentionConfig, AttentionWeights, PagedCache, get_backend
from dsv4core.attention import DeepseekV4Attention

KINDS = {"swa": 0, "csa": 1, "hca": 2}


@cache
def text(request: str, length: int = 700) -> Tensor:
    """Hidden rows of a request. Shapes: bf16 [length, 64]."""
    generator = torch.Generator().manual_seed(sum(request.encode()))
    return torch.randn(length, 64, generator=generator).to(torch.bfloat16)


@cache
def layer_of(kind: str, overrides: tuple[tuple[str, Any], ...] = ()) -> DeepseekV4Attention:
    config = AttentionConfig.preset("tiny", **dict(overrides))
    weights = AttentionWeights.random(config, KINDS[kind], seed=7)
    return get_backend("cpu").attention(config, KINDS[kind], weights)


class World:
    """A layer with a cache; rows come from `text` unless the test brings its own."""

    def __init__(self, kind: str, **overrides: Any) -> None:
        self.attention = layer_of(kind, tuple(sorted(overrides.items())))
        self.config = self.attention.config
        self.cache = PagedCache.allocate(self.config, [KINDS[kind]], 2048, max_requests=6)

    def rows(self, new: Mapping[str, int]) -> Tensor:
        """The next rows of some requests, in the order of the mapping."""
        held = self.cache.requests
        starts = {name: self.cache.length(name) if name in held else 0 for name in new}
        return torch.cat([text(name)[starts[name] : starts[name] + n] for name, n in new.items()])

    def step(self, new: Mapping[str, int], rows: Tensor | None = None) -> dict[str, Tensor]:
        """Run a step; the output rows by request."""
        hidden = self.rows(new) if rows is None else rows
        self.plan = self.cache.plan(new)
        out = self.attention(hidden, self.cache, self.plan)
        return dict(zip(new, out.split(list(new.values())), strict=True))

    def pages(self, place: int) -> dict[str, set[int]]:
        """Page numbers that the last plan maps for its request number `place`, by group."""
        tables = self.plan.tables.items()
        return {group: {page for page in table[place].tolist() if page >= 0} for group, table in tables}

    def same_pages(self, other: World, request: str) -> bool:
        mine, theirs = self.cache.snapshot(request), other.cache.snapshot(request)
        return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
