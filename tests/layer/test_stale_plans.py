"""A plan that another cache made, or whose requests are gone, writes to nobody's pages."""

from __future__ import annotations

import pytest
import torch

from dsv4core import AttentionConfig, AttentionWeights, PagedCache, get_backend
from dsv4core.attention import DeepseekV4Attention
from dsv4core.errors import CacheError

CONFIG = AttentionConfig.preset("tiny")
LAYERS = [0, 1, 2]


@pytest.fixture
def layers() -> list[DeepseekV4Attention]:
    made = get_backend("cpu")
    return [made.attention(CONFIG, i, AttentionWeights.random(CONFIG, i, 0)) for i in LAYERS]


def hidden(rows: int) -> torch.Tensor:
    return torch.randn(rows, CONFIG.hidden_size, generator=torch.Generator().manual_seed(rows)).bfloat16()


def new_cache() -> PagedCache:
    return PagedCache.allocate(CONFIG, LAYERS, 1000)


def test_a_plan_of_another_cache(layers: list[DeepseekV4Attention]) -> None:
    mine, other = new_cache(), new_cache()
    plan = other.plan({"victim": 100})
    for layer in layers:
        layer(hidden(100), other, plan)
    before = other.digest("victim")
    for layer in layers:
        with pytest.raises(CacheError, match="made by another cache"):
            layer(hidden(100), other, mine.plan({"mine": 100}))
        mine.free("mine")
    assert other.digest("victim") == before


@pytest.mark.parametrize("how", ["freed", "truncated"])
def test_a_plan_whose_request_is_gone(how: str, layers: list[DeepseekV4Attention]) -> None:
    cache = new_cache()
    stale = cache.plan({"a": 5, "kept": 9})
    if how == "freed":
        cache.free("a")
    else:
        cache.truncate("a", 0)
    plan = cache.plan({"b": 100})
    for layer in layers:
        layer(hidden(100), cache, plan)
    before = cache.digest("b")
    for layer in layers:
        with pytest.raises(CacheError, match=f"'a' was {how} after"):
            layer(hidden(14), cache, stale)
    if how == "freed":  # the name alone is no reason to take it for the request that was planned
        cache.plan({"a": 5})
        with pytest.raises(CacheError, match="'a' was freed after"):
            layers[0](hidden(14), cache, stale)
    assert cache.digest("b") == before


def test_plans_that_stay_good(layers: list[DeepseekV4Attention]) -> None:
    """A step may be tried again, and the next be planned before this one runs; others may leave."""
    cache = new_cache()
    first = cache.plan({"a": 100, "gone": 3})
    again = [layer(hidden(103), cache, first) for layer in layers]
    for layer, before in zip(layers, again, strict=True):
        assert torch.equal(layer(hidden(103), cache, first), before)
    cache.free("gone")
    second = cache.plan({"a": 1})
    third = cache.plan({"a": 1, "new": 2})
    cache.fork("new", "copy")
    for plan in (second, third):
        for layer in layers:
            layer(hidden(plan.num_tokens), cache, plan)
    cache.truncate("a", 102)  # nothing is cut
    layers[0](hidden(3), cache, third)
