"""How many pages are enough: a cache of these sizes never runs out of pages within its limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dsv4core.cache.specs import CacheSpec, cache_specs
from dsv4core.config import AttentionConfig
from dsv4core.errors import CacheError
from dsv4core.plan.check import whole_number
from dsv4core.plan.groups import GROUPS

DEFAULT_MAX_CHUNK = 2048
MAX_REQUESTS = 2**20


@dataclass(frozen=True)
class CacheLimits:
    """What a cache promises to hold.

    `capacity_tokens` counts the tokens of all requests together, `max_requests` the requests held at once,
    `max_chunk` the new tokens of one step over all requests, `max_rollback` the tokens a request can be
    truncated by. None, for `capacity_tokens` and `max_chunk` alone, means that only the pages there are set a
    limit. `max_requests` is at most 2^20: every group has a row of its page table for each. The others have
    no bound but memory.
    """

    capacity_tokens: int | None
    max_requests: int
    max_chunk: int | None
    max_rollback: int

    def __post_init__(self) -> None:
        whole_number(self.max_requests, "max_requests", 1, MAX_REQUESTS)
        whole_number(self.max_rollback, "max_rollback", 0)
        for name in ("capacity_tokens", "max_chunk"):
            if getattr(self, name) is not None:
                whole_number(getattr(self, name), name, 1)


def page_counts(
    config: AttentionConfig,
    layers: Iterable[int],
    capacity_tokens: int,
    *,
    max_requests: int = 16,
    max_chunk: int | None = None,
    max_rollback: int = 8,
    rows: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Return the pages per group that `PagedCache.allocate` makes; each layer of the group has that many.

    A request of L tokens holds ceil(floor(L / tokens_per_row) / rows) pages of a growing group. Of a sliding
    group it holds, during a step of n tokens, at most the pages that n + kept tokens can touch, wherever they
    begin: ceil((n + kept - 1) / rows) + 1. Both are summed over the worst split of the limits over the
    requests.
    """
    capacity = whole_number(capacity_tokens, "capacity_tokens", 1)
    limits = CacheLimits(capacity, max_requests, default_chunk(capacity, max_chunk), max_rollback)
    specs = [spec for layer in layers for spec in cache_specs(config, layer, rows=rows)]
    return counts_for(specs, limits)


def default_chunk(capacity_tokens: int, max_chunk: int | None) -> int:
    """Return `max_chunk`, or what it is when not given: the capacity, but at most 2,048 tokens."""
    return min(capacity_tokens, DEFAULT_MAX_CHUNK) if max_chunk is None else max_chunk


def counts_for(specs: Iterable[CacheSpec], limits: CacheLimits) -> dict[str, int]:
    """Return the pages per group for limits that are all given."""
    capacity, requests, chunk = limits.capacity_tokens, limits.max_requests, limits.max_chunk
    if capacity is None or chunk is None:
        raise CacheError("pages are counted for a capacity_tokens and a max_chunk: give both")
    counts: dict[str, int] = {}
    for spec in specs:
        rows = spec.rows
        held = capacity // spec.tokens_per_row
        pages = min((held + requests * (rows - 1)) // rows, held)
        if spec.sliding is not None:
            kept = spec.sliding + limits.max_rollback
            pages = min(pages, requests + (requests * (kept + rows - 2) + min(chunk, capacity)) // rows)
        counts[spec.group] = max(pages, counts.get(spec.group, 1))
    return {name: counts[name] for name in GROUPS if name in counts}
