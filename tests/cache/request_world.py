"""Requests whose rows are a function of all their tokens, so that a wrong row cannot look right."""

from __future__ import annotations

import torch

from dsv4core.cache import PagedCache, cache_specs
from dsv4core.cache.specs import layout_of, owned_rows
from dsv4core.config import AttentionConfig

TINY = AttentionConfig.preset("tiny")
LAYERS = (0, 1, 2)
OTHER_ROWS = {
    "swa": 16,
    "c4": 6,
    "indexer": 10,
    "state_c4": 3,
    "state_indexer": 8,
    "c128": 3,
    "state_c128": 16,
}
MASK = 2**31 - 1


class History:
    """Tokens of a request as prefix hashes: number p stands for tokens 0..p."""

    def __init__(self, hashes=()):
        self.hashes = list(hashes)

    def extend(self, tokens):
        for token in tokens:
            last = self.hashes[-1] if self.hashes else 17
            self.hashes.append((last * 1_103_515_245 + token * 40_503 + 12_345) & MASK)

    def __len__(self):
        return len(self.hashes)


def rows_of(spec, hashes, start, end):
    """What rows start:end of a cache hold for a history."""
    last = [hashes[(j + 1) * spec.tokens_per_row - 1] for j in range(start, end)]
    last = torch.tensor(last, dtype=torch.int64).view(-1, 1)
    salt = sum(ord(c) * 31**i for i, c in enumerate(spec.key)) & MASK
    width = spec.row_width if spec.dtype == "f32" else spec.record_bytes
    data = ((last + salt) * (torch.arange(width) * 2 + 1) >> 11) & 255
    return data.float() if spec.dtype == "f32" else data.to(torch.uint8)


def step(cache, histories, new, tokens):
    """Plan `new` tokens per request and write every row that the plan names, in every layer."""
    plan = cache.plan(new)
    for request, n in new.items():
        histories.setdefault(request, History()).extend(tokens[request][:n])
    order = [list(new)[i] for i in plan.request_order]
    for at, request in enumerate(order):
        begin, end = plan.query_start_loc[at : at + 2].tolist()
        length = cache.length(request)
        old = length - new[request]
        for spec in cache.specs.values():
            slots = plan.slots[spec.group][begin:end]
            slots = slots[slots >= 0]
            r = spec.tokens_per_row
            data = rows_of(spec, histories[request].hashes, old // r, length // r)
            assert len(data) == len(slots)
            storage = cache._tensors[spec.key]
            if spec.dtype == "f32":
                storage[slots // spec.rows, slots % spec.rows] = data
            else:
                layout_of(spec).write(storage, slots, data, spec.rows)
    return plan


def expected(cache, history):
    """The snapshot of a request, built from its tokens alone and without a cache."""
    result = {}
    for key, spec in cache.specs.items():
        start, end = owned_rows(spec, len(history))
        first = start // spec.rows
        count = -(-end // spec.rows) - first if end > start else 0
        pages = torch.zeros((count, spec.page_bytes), dtype=torch.uint8)
        if count:
            data = rows_of(spec, history.hashes, start, end)
            data = data.view(torch.uint8) if spec.dtype == "f32" else data
            slots = torch.arange(start - first * spec.rows, end - first * spec.rows)
            layout_of(spec).write(pages, slots, data, spec.rows)
        result[key] = pages
    return result


def assert_bytes(cache, request, history):
    """Every byte of a request is what its tokens alone make it."""
    assert cache.length(request) == len(history)
    got, want = cache.snapshot(request), expected(cache, history)
    wrong = [key for key in want if not torch.equal(got[key], want[key])]
    assert not wrong, f"{request}: {wrong}"


def dirty(cache):
    """Fill every page with garbage that nobody owns."""
    for tensor in cache._tensors.values():
        tensor.fill_(0x5A)
    return cache


def few_pages(pages, config=TINY, rows=None, **limits):
    """A cache on given tensors with `pages` per group and no capacity in tokens."""
    wide = PagedCache.allocate(config, LAYERS, 4096, "meta", rows=rows).specs
    tensors = {
        key: torch.full((pages[spec.group], spec.page_bytes), 0x5A, dtype=torch.uint8)
        for key, spec in wide.items()
    }
    return PagedCache.from_tensors(config, tensors, rows=rows, **limits)


def renewed(cache):
    """A cache with empty books on the same, now dirty, pages."""
    specs = {layer: [s for s in cache.specs.values() if s.layer == layer] for layer in cache.layers}
    return PagedCache(cache.config, specs, cache._tensors, cache.limits)


def books(cache):
    """A deep copy of everything a cache knows besides bytes of pages."""
    ledger = cache._ledger
    groups = {}
    for name, group in ledger.groups.items():
        table = [row[: max(group.count)] for row in group.table.tolist()]
        free = (list(group.free), list(group.refs), group.shared, set(group.torn))
        groups[name] = (free, list(group.first), list(group.count), table)
    held = {i: (r.seat, r.length, r.peak, r.floor) for i, r in ledger.requests.items()}
    blocks = {k: list(v) for k, v in ledger.blocks._blocks.items()}
    shared = (blocks, dict(ledger.blocks._holders), ledger.blocks.saved)
    return held, list(ledger.requests), list(ledger.vacant), groups, shared


def content(cache):
    """A copy of every byte of every page."""
    return {key: tensor.clone() for key, tensor in cache._tensors.items()}


def unchanged(cache, before):
    """Whether a cache equals (books, content) of before, byte for byte."""
    return books(cache) == before[0] and all(
        torch.equal(t, before[1][key]) for key, t in cache._tensors.items()
    )


def specs_of(config=TINY):
    """All specs of the tiny model by key."""
    return {spec.key: spec for layer in LAYERS for spec in cache_specs(config, layer)}
