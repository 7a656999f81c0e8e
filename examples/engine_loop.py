"""A small engine that owns its pages: its tensors, its allocator, its page tables.

dsv4core sees them through four names only: `cache_specs` says how large pages are, `PagedCache.from_tensors`
takes the engine's tensors, `BatchPlan.build` takes its page tables, and the layer runs. The same steps on
`PagedCache.allocate` and `cache.plan` must give the same bits. Run it: python examples/engine_loop.py
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from dsv4core import (
    AttentionConfig,
    AttentionWeights,
    BatchPlan,
    CacheSpec,
    PagedCache,
    cache_specs,
    get_backend,
)

LAYERS = (0, 1, 2)  # of preset "tiny": window only, ratio 4 with indexer, ratio 128
ROLLBACK = 4  # drafts that may be rejected
PAGES = {"swa": 10, "c4": 4, "indexer": 4, "c128": 2, "state_c4": 150, "state_indexer": 150, "state_c128": 75}


class Model:
    """Three attention layers with residuals on embedded bytes: something to prefill and decode."""

    def __init__(self) -> None:
        self.config = AttentionConfig.preset("tiny", decode_threshold=3)
        backend, c = get_backend("cpu"), self.config
        self.layers = [backend.attention(c, i, AttentionWeights.random(c, i, seed=i)) for i in LAYERS]
        table = torch.randn(256, c.hidden_size, generator=torch.Generator().manual_seed(0))
        self.embedding = table.to(torch.bfloat16)

    def __call__(self, tokens: bytes, cache: PagedCache, plan: BatchPlan) -> Tensor:
        """Hidden states of a step's tokens, in the order of its requests. Shapes: -> bf16 [T, hidden]."""
        x = self.embedding[list(tokens)]
        for layer in self.layers:
            x = x + layer(x, cache, plan)
        return x


class Engine:
    """Requests, page tables and tensors of one's own.

    Every group has one allocation in which a page of each layer lies side by side; a page number means the
    same place for all layers, so one table per group and request is enough.
    """

    def __init__(self, model: Model) -> None:
        self.model, c = model, model.config
        self.groups: dict[str, list[CacheSpec]] = defaultdict(list)
        for layer in LAYERS:
            for spec in cache_specs(c, layer):
                self.groups[spec.group].append(spec)
        tensors: dict[str, Tensor] = {}
        for group, specs in self.groups.items():
            whole = torch.zeros(PAGES[group], sum(spec.page_bytes for spec in specs), dtype=torch.uint8)
            parts = whole.split([spec.page_bytes for spec in specs], dim=1)
            tensors.update({spec.key: part for spec, part in zip(specs, parts, strict=True)})
        self.cache = PagedCache.from_tensors(c, tensors)
        self.free = {group: list(range(PAGES[group])) for group in self.groups}
        self.tables: dict[str, dict[str, list[int]]] = {}  # request -> group -> page numbers, -1 given back
        self.lengths: dict[str, int] = {}

    def step(self, new: Mapping[str, int], tokens: bytes) -> Tensor:
        """Run `new[request]` more tokens of every request. Shapes: -> bf16 [T, hidden]."""
        for request, count in new.items():
            self.tables.setdefault(request, {group: [] for group in self.groups})
            self.lengths[request] = self.lengths.get(request, 0) + count
            for group, specs in self.groups.items():
                self._grow(request, group, specs[0], self.lengths[request] - count)
        plan = BatchPlan.build(
            self.model.config,
            query_lens=list(new.values()),
            seq_lens=[self.lengths[request] for request in new],
            tables={group: self._table(group, list(new)) for group in self.groups},
        )
        print(f"  {dict(new)}: {plan.num_decode_tokens} decode and {plan.num_prefill_tokens} prefill rows")
        return self.model(tokens, self.cache, plan)

    def reject(self, request: str, count: int) -> None:
        """Take back the newest tokens of a request; nothing in the pages has to be undone."""
        self.lengths[request] -= count
        for group, specs in self.groups.items():
            table = self.tables[request][group]
            while len(table) > _pages(specs[0], self.lengths[request]):
                self.free[group].append(table.pop())

    def leave(self, request: str) -> dict[str, set[int]]:
        """Forget a request; its pages go to whoever comes next, as they are."""
        del self.lengths[request]
        pages = {group: {p for p in table if p >= 0} for group, table in self.tables.pop(request).items()}
        for group, numbers in pages.items():
            self.free[group] += sorted(numbers)
        return pages

    def _grow(self, request: str, group: str, spec: CacheSpec, before: int) -> None:
        """Give back what no later token reads, then take pages until the request fits."""
        table = self.tables[request][group]
        if spec.sliding is not None:
            for i in range(max(before - spec.sliding - ROLLBACK, 0) // spec.rows):
                if table[i] >= 0:
                    self.free[group].append(table[i])
                    table[i] = -1
        while len(table) < _pages(spec, self.lengths[request]):
            table.append(self.free[group].pop())

    def _table(self, group: str, requests: list[str]) -> Tensor:
        rows = [self.tables[request][group] for request in requests]
        width = max(1, *map(len, rows))
        return torch.tensor([row + [-1] * (width - len(row)) for row in rows], dtype=torch.int32)


def _pages(spec: CacheSpec, length: int) -> int:
    return -(-(length // spec.tokens_per_row) // spec.rows)


def main() -> None:
    """Serve four requests twice, on the engine's pages and on those of `PagedCache.allocate`, and compare."""
    torch.set_num_threads(1)  # the tensors are tiny: threads would only wait for each other
    model = Model()
    engine = Engine(model)
    cache = PagedCache.allocate(model.config, LAYERS, 1024, max_requests=4, max_rollback=ROLLBACK)
    text = {name: (f"Request {name} says what it has to say. " * 20).encode() for name in "abcd"}
    compared = 0

    def both(new: dict[str, int]) -> None:
        nonlocal compared
        starts = {name: engine.lengths.get(name, 0) for name in new}
        tokens = b"".join(text[name][starts[name] : starts[name] + n] for name, n in new.items())
        mine, theirs = engine.step(new, tokens), model(tokens, cache, cache.plan(new))
        assert torch.equal(mine, theirs), f"step {new}: the engine's pages give other bits"
        compared += mine.shape[0]

    print("prefill of three requests")
    both({"a": 300, "b": 170, "c": 5})
    print("decode, up to three tokens a step")
    both({"a": 3, "b": 1, "c": 2})
    print("two drafts of a are rejected; another text goes on in their place")
    engine.reject("a", 2)
    cache.truncate("a", 301)
    text["a"] = text["a"][:301] + text["b"]
    both({"a": 3, "b": 3, "c": 1})
    pages = engine.leave("b")
    cache.free("b")
    print("b leaves; d is prefilled between the decodes of a and c")
    both({"a": 1, "d": 200, "c": 2})
    shared = {group: pages[group] & set(engine.tables["d"][group]) for group in pages}
    print("  pages of b that d has now:", ", ".join(f"{len(n)} {group}" for group, n in shared.items()))
    assert all(shared[group] for group in ("swa", "c4", "indexer", "c128", "state_c128"))
    print("decode of all")
    for _ in range(5):
        both({"d": 1, "a": 1, "c": 3})
    print(
        f"ok: {compared} rows through {len(LAYERS)} layers, bit for bit as with PagedCache.allocate and plan"
    )


if __name__ == "__main__":
    main()
