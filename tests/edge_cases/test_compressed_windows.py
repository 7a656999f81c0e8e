"""Edge cases 1-6: windows of the compressor that are missing, unfinished, just finished or cut in two."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from harness import (
    ALL_CANDIDATES,
    MAIN_GROUP,
    assert_same_bytes,
    chunks_of,
    differing_rows,
    ops,
    pages,
    relative,
    rig,
    values,
)

from dsv4core.layout import get_layout
from dsv4core.numerics.tables import cos_sin
from dsv4core_conformance.reference.compressor import compress
from dsv4core_conformance.reference.options import Options, Yarn
from dsv4core_conformance.reference.rope import inverse_frequencies


@pytest.mark.parametrize(
    ("kind", "length"), [("csa", 1), ("csa", 2), ("csa", 3), ("hca", 1), ("hca", 100), ("hca", 127)]
)
def test_01_shorter_than_ratio(kind: str, length: int) -> None:
    layer = rig(kind, index_topk=ALL_CANDIDATES)
    total = layer.ratio + 4
    hidden = layer.hidden(total)
    cache = layer.cache()
    head = layer.run(hidden[:length], cache=cache)
    assert not layer.cache().layer(layer.layer).compressed.any(), (
        "a fresh cache must be zero for this test to mean something"
    )
    assert not cache.layer(layer.layer).compressed.any(), "no entry may be written"
    trace = layer.trace(hidden)
    assert relative(head, trace["out"][:length]) < 2e-6
    assert trace["visible"][:length].tolist() == [0] * length
    tail = layer.run(hidden[length:], [1] * (total - length), cache)
    assert relative(tail, trace["out"][length:]) < 2e-6
    once = layer.cache()
    layer.run(hidden, cache=once)
    assert_same_bytes(cache.snapshot("a"), once.snapshot("a"))


@pytest.mark.parametrize(
    ("kind", "length"), [("csa", 5), ("csa", 37), ("csa", 38), ("csa", 39), ("hca", 129), ("hca", 300)]
)
def test_02_length_not_a_multiple_of_the_ratio(kind: str, length: int) -> None:
    layer = rig(kind, index_topk=ALL_CANDIDATES)
    hidden = layer.hidden(length)
    cache = layer.cache()
    out = layer.run(hidden, cache=cache)
    trace = layer.trace(hidden)
    entries = layer.rows(cache, MAIN_GROUP[kind])
    count = length // layer.ratio
    assert len(trace["entries"]) == count
    assert relative(entries[:count], trace["entries"]) < 2e-6
    assert not entries[count:].any(), "the unfinished window has no entry"
    assert relative(out, trace["out"]) < 2e-6


@pytest.mark.parametrize("chunks", [[12], [1] * 12, [5, 7], [7, 1, 4]])
def test_03_a_completed_window_is_visible_to_its_last_token(chunks: list[int]) -> None:
    layer = rig("csa", sliding_window=1, index_topk=ALL_CANDIDATES)
    hidden = layer.hidden(12)
    changed = hidden.clone()
    changed[4] += 1
    # Token 4 itself; 7 and later see its window, 5 and 6 do not.
    assert differing_rows(layer.run(hidden, chunks), layer.run(changed, chunks)) == [4, 7, 8, 9, 10, 11]


@pytest.mark.parametrize(
    ("kind", "length", "token"), [("csa", 24, 11), ("csa", 24, 10), ("hca", 260, 255), ("hca", 260, 130)]
)
@pytest.mark.parametrize("profile", ["math", "vllm"])
def test_04_an_unfinished_window_is_invisible(kind: str, length: int, token: int, profile: str) -> None:
    layer = rig(kind, profile, sliding_window=1, index_topk=ALL_CANDIDATES)
    hidden = layer.hidden(length)
    changed = hidden.clone()
    changed[token] += 1
    closes = token // layer.ratio * layer.ratio + layer.ratio - 1
    expected = sorted({token, *range(closes, length)})
    assert differing_rows(layer.run(hidden), layer.run(changed)) == expected
    plan = layer.cache().plan({"a": length})
    assert plan.context_lens[layer.ratio].tolist() == [(p + 1) // layer.ratio for p in range(length)]


def test_05_the_first_overlap_window_has_no_predecessor() -> None:
    kv, score = values(4, 1024, stream=31), values(4, 1024, stream=32)
    # Everything that is not a state of tokens 0..3 is NaN: a weight of 0 times NaN would show.
    state = torch.full((3, 4, 2048), torch.nan)
    state[1] = torch.cat([kv, score], dim=1)
    norm = 1 + values(512, stream=33) / 8
    target = pages(torch.zeros(64, 512))
    ops().compress_norm_rope_store(
        state,
        torch.arange(4),
        torch.zeros(4, dtype=torch.int32),
        torch.arange(4, 8),
        torch.tensor([[1, 0]], dtype=torch.int32),
        cos_sin(1.6e5, rig("csa").config.yarn, 4),
        norm,
        target,
        torch.tensor([-1, -1, -1, 0]),
        ratio=4,
        head_dim=512,
        rows=64,
        layout="f32_row",
        eps=1e-6,
        rotate="none",
    )
    entry = get_layout("f32_row").decode_pages(target, 64)[0, 0]
    assert torch.isfinite(entry).all()
    # The softmax of four slots, second half of the columns, and nothing else.
    one_half = compress(
        kv[:, 512:].double().numpy(),
        score[:, 512:].double().numpy(),
        norm.double().numpy(),
        4,
        inverse_frequencies(1.6e5, Yarn()),
        1e-6,
        Options(),
    )
    assert relative(entry, one_half[0]) < 1e-6


@pytest.mark.parametrize("chunks", [[4, 4], [5, 3], [7, 1], [1] * 8, [2, 3, 3]])
@pytest.mark.parametrize("profile", ["math", "vllm"])
def test_06_overlap_across_a_call_boundary(chunks: list[int], profile: str) -> None:
    layer = rig("csa", profile, index_topk=ALL_CANDIDATES)
    hidden = layer.hidden(8)
    cache, once = layer.cache(), layer.cache()
    layer.run(hidden, chunks, cache)
    layer.run(hidden, cache=once)
    assert_same_bytes(cache.snapshot("a"), once.snapshot("a"))
    trace = layer.trace(hidden)
    for group, name in (("c4", "entries"), ("indexer", "index_entries")):
        bound = 2e-6 if profile == "math" else 1e-2
        assert relative(layer.rows(cache, group)[:2], trace[name]) < bound
    changed = hidden.clone()
    changed[1] += 1
    other = layer.cache()
    layer.run(changed, chunks, other)
    moved = differing_rows(layer.rows(cache, "c4")[:3], layer.rows(other, "c4")[:3])
    assert moved == [0, 1], "token 1 contributes to its own entry and to the next one"


@pytest.mark.parametrize("kind", ["csa", "hca"])
def test_01_after_another_sequence_starts_fresh(kind: str) -> None:
    """A request that reuses freed pages must not inherit the state of their last owner."""
    layer = rig(kind, index_topk=ALL_CANDIDATES)
    hidden = layer.hidden(layer.ratio + 6, stream=2)
    cache = layer.cache(256, requests=1)
    layer.run(layer.hidden(200, stream=3), chunks_of(200, [131, 3]), cache)
    cache.free("a")
    again = layer.run(hidden, chunks_of(len(hidden), [2, 1]), cache)
    assert np.isfinite(again.numpy()).all()
    assert relative(again, layer.trace(hidden)["out"]) < 2e-6
