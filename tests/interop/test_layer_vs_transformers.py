"""The layer in profile `math` computes what transformers computes, on any way through a sequence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from oracle import Oracle, odd_chunks, relative

from dsv4core import (
    AttentionConfig,
    AttentionWeights,
    DeepseekV4Attention,
    PagedCache,
    cache_specs,
    get_backend,
)
from dsv4core.layout import get_layout

pytestmark = pytest.mark.interop

BOUND = 2e-6
KINDS = ("swa", "csa", "hca")
LAYERS = {"tiny": {"swa": 0, "csa": 1, "hca": 2}, "v4-flash": {"swa": 0, "csa": 2, "hca": 3}}
LENGTH = 300
EVERYTHING = 512


class Pair:
    """The same weights in both implementations, and what the oracle says in one stateless call."""

    def __init__(self, kind: str, size: str, topk: int) -> None:
        self.oracle = Oracle(kind, size, topk=topk)
        self.config = AttentionConfig.preset(size, profile="math", index_topk=topk)
        self.index = LAYERS[size][kind]
        weights = AttentionWeights.from_state_dict(self.oracle.weights(), "")
        self.attention: DeepseekV4Attention = get_backend("cpu").attention(self.config, self.index, weights)
        generator = torch.Generator().manual_seed(1)
        self.hidden = torch.randn(LENGTH, self.config.hidden_size, generator=generator)
        self.expected = self.oracle.run(self.hidden)

    def run(self, chunks: Sequence[int], length: int = LENGTH) -> tuple[torch.Tensor, PagedCache]:
        """Outputs of request "a" in chunks, and the cache behind them."""
        cache = PagedCache.allocate(self.config, [self.index], 512, "cpu", max_requests=1, max_chunk=LENGTH)
        outputs = []
        for part in self.hidden[:length].split(list(chunks)):
            outputs.append(self.attention(part, cache, cache.plan({"a": len(part)})))
        return torch.cat(outputs), cache

    def entries(self, cache: PagedCache, group: str) -> torch.Tensor:
        """Entries of request "a" out of its pages. Shapes: -> [entries, 512 or 128]."""
        spec = next(s for s in cache_specs(self.config, self.index) if s.group == group)
        rows = get_layout(spec.layout).decode_pages(cache.snapshot("a")[spec.key], spec.rows).flatten(0, 1)
        return rows[: LENGTH // spec.tokens_per_row]


@lru_cache(maxsize=1)
def _pair(kind: str, size: str, topk: int) -> Pair:
    return Pair(kind, size, topk)


@pytest.fixture(scope="module", params=[(size, kind) for size in LAYERS for kind in KINDS], ids="-".join)
def pair(request: pytest.FixtureRequest) -> Pair:
    size, kind = request.param
    return _pair(kind, size, EVERYTHING)


def test_prefill(pair: Pair) -> None:
    out, cache = pair.run([LENGTH])
    assert relative(out, pair.expected) <= BOUND
    group = {"csa": "c4", "hca": "c128"}.get(pair.oracle.kind)
    if group is not None:
        pair.oracle.run(pair.hidden, [LENGTH])
        assert relative(pair.entries(cache, group), pair.oracle.entries()) <= BOUND


def test_odd_chunks(pair: Pair) -> None:
    out, _ = pair.run(odd_chunks(LENGTH))
    assert relative(out, pair.expected) <= BOUND
    assert relative(out, pair.oracle.run(pair.hidden, odd_chunks(LENGTH))) <= BOUND


def test_single_step_decode(pair: Pair) -> None:
    # From one token before a window closes; a tiny layer decodes all the way over every edge.
    start = 3 if pair.config.hidden_size == 64 else 253
    length = LENGTH if start == 3 else 263
    chunks = [start, *[1] * (length - start)]
    out, _ = pair.run(chunks, length)
    assert relative(out[start:], pair.expected[start:length]) <= BOUND
    decoded = pair.oracle.run(pair.hidden[:length], chunks)
    assert relative(out[start:], decoded[start:]) <= BOUND


class Recorder:
    """An op table whose indexer reports its scores and may be told what to choose."""

    def __init__(self, ops: Any, given: torch.Tensor | None = None) -> None:
        self.ops, self.given, self.done = ops, given, 0
        self.scores: list[torch.Tensor] = []
        self.picks: list[torch.Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ops, name)

    def sparse_indexer(
        self, *tensors: torch.Tensor, workspace_bytes: int, k: int, **names: Any
    ) -> torch.Tensor:
        self.scores.append(self.ops.indexer_logits(*tensors, max_len=LENGTH // 4, **names))
        self.picks.append(self.ops.sparse_indexer(*tensors, workspace_bytes=workspace_bytes, k=k, **names))
        if self.given is None:
            return self.picks[-1]
        self.done += len(tensors[0])
        return self.given[self.done - len(tensors[0]) : self.done]


@pytest.fixture(params=["tiny", "v4-flash"])
def selecting(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A CSA layer that chooses 16 of up to 75 entries."""
    pair = _pair("csa", request.param, 16)
    ops = pair.attention.ops
    yield pair
    pair.attention.ops = ops


@pytest.mark.parametrize("chunks", [[LENGTH], odd_chunks(LENGTH)], ids=["prefill", "odd chunks"])
def test_stages_with_an_active_selection(selecting: Pair, chunks: list[int]) -> None:
    oracle, attention = selecting.oracle, selecting.attention
    expected = oracle.run(selecting.hidden, [LENGTH])
    scores, picks = oracle.scores[0], oracle.picks[0]
    recorder = Recorder(attention.ops)
    attention.ops = recorder  # type: ignore[assignment]
    _, cache = selecting.run(chunks)
    # (a) entries of both compressors
    assert relative(selecting.entries(cache, "c4"), oracle.entries()) <= BOUND
    assert relative(selecting.entries(cache, "indexer"), oracle.entries("indexer")) <= BOUND
    # (b) scores of what each query may see
    mine = torch.cat(recorder.scores)
    visible = torch.arange(LENGTH // 4) < ((torch.arange(LENGTH) + 1) // 4)[:, None]
    assert torch.equal(torch.isfinite(mine), visible)
    tolerance = 2e-6 * float(scores.abs().max())
    assert float((mine - scores)[visible].abs().max()) <= tolerance
    # (c) the choice: nothing left behind scores more than anything taken, up to the error of a score
    for row, chosen in enumerate(torch.cat(recorder.picks)):
        taken = chosen[chosen >= 0].long()
        assert len(taken.unique()) == min(16, (row + 1) // 4)
        left = visible[row].clone()
        left[taken] = False
        assert not left.any() or scores[row, taken].min() >= scores[row, left].max() - 2 * tolerance
    # (d, e) attention and output, given the oracle's choice
    given = picks.masked_fill(picks < 0, 2**30).sort(dim=1).values
    attention.ops = Recorder(recorder.ops, given.masked_fill(given == 2**30, -1).int())  # type: ignore[assignment]
    out, _ = selecting.run(chunks)
    assert relative(out, expected) <= BOUND
