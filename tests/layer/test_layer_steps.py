"""Any split of tokens into steps and batches gives the same rows and the same pages."""

from __future__ import annotations

import pytest
import torch
from layer_world import KINDS, World, text

from dsv4core import AttentionConfig, AttentionWeights, PagedCache, get_backend


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_mixed_batch_with_permutation_equals_separate_runs(kind: str) -> None:
    # Prefills in front of decodes in the caller's order, so the plan has to move rows both ways.
    together = World(kind, prefill_chunk_requests=2)
    together.step({"a": 300, "b": 131, "c": 3})
    new = {"d": 200, "a": 1, "e": 7, "b": 90, "c": 1}
    rows = together.rows(new)
    plan = together.cache.plan(new)
    assert plan.permutation is not None and plan.num_decodes == 2 and len(plan.prefill_chunks) == 2
    outputs = dict(
        zip(new, together.attention(rows, together.cache, plan).split(list(new.values())), strict=True)
    )
    for name, first in {"a": 300, "b": 131, "c": 3, "d": 0, "e": 0}.items():
        alone = World(kind)
        if first:
            alone.step({name: first})
        assert torch.equal(alone.step({name: new[name]})[name], outputs[name]), name
        assert alone.same_pages(together, name), name


@pytest.mark.parametrize("way", ["the same plan again", "fork"])
def test_a_step_that_failed_half_way_is_made_good(way: str) -> None:
    """Some layers ran a chunk and the others did not; `truncate` would not go back that far."""
    config, backend = AttentionConfig.preset("tiny"), get_backend("cpu")
    layers = [backend.attention(config, i, AttentionWeights.random(config, i, seed=7)) for i in range(3)]
    broken, whole = (PagedCache.allocate(config, range(3), 2048) for _ in range(2))
    rows = text("a")[:400]
    for cache in (broken, whole):
        plan = cache.plan({"a": 300})
        for layer in layers:
            layer(rows[:300], cache, plan)
    want, plan = whole.plan({"a": 100}), broken.plan({"a": 100})
    layers[0](rows[300:], broken, plan)
    layers[1](torch.ones_like(rows[300:]), broken, plan)  # and one has written rubbish
    name = "a"
    if way == "fork":
        broken.fork("a", "again", length=300)
        broken.free("a")
        name, plan = "again", broken.plan({"again": 100})
    for layer in layers:
        assert torch.equal(layer(rows[300:], broken, plan), layer(rows[300:], whole, want))
    assert broken.digest(name) == whole.digest("a")


def test_padding_rows_change_nothing(kind: str) -> None:
    for steps in ([{"a": 140}, {"a": 1, "b": 5}], [{"a": 140, "b": 5}, {"a": 1, "b": 1}]):
        plain, padded = World(kind), World(kind)
        for new in steps:
            rows = padded.rows(new)
            plan = padded.cache.plan(new, pad_to=len(rows) + 3)
            # Padding holds whatever the buffer held; finite, because checked mode would name anything else.
            filled = torch.cat((rows, torch.full((3, rows.shape[1]), 1e4, dtype=rows.dtype)))
            out = padded.attention(filled, padded.cache, plan)
            assert out.shape == filled.shape and bool(torch.isfinite(out).all())
            want = torch.cat(list(plain.step(new).values()))
            assert torch.equal(out[: len(rows)], want)
        assert padded.same_pages(plain, "a") and padded.same_pages(plain, "b")


def test_a_step_of_padding_only(kind: str) -> None:
    world = World(kind)
    rows = torch.ones(4, 64, dtype=torch.bfloat16)
    out = world.attention(rows, world.cache, world.cache.plan({}, pad_to=4))
    assert out.shape == (4, 64) and not bool(out.any())
    pages = world.cache.layer(KINDS[kind])
    assert not bool(pages.swa.any())
    assert all(
        part is None or not bool(part.any()) for part in (pages.compressed, pages.indexer, pages.state)
    )


def test_several_tokens_per_decode_step_equal_single_steps(kind: str) -> None:
    many, single = World(kind, decode_threshold=4), World(kind)
    many.step({"a": 250, "b": 9})
    single.step({"a": 250, "b": 9})
    for count in (4, 3, 4):
        got = many.step({"a": count, "b": 2})
        assert many.plan.num_decode_tokens == count + 2 and many.plan.num_prefill_tokens == 0
        rows = [single.step({"a": 1})["a"] for _ in range(count)]
        assert torch.equal(got["a"], torch.cat(rows))
        assert torch.equal(got["b"], torch.cat([single.step({"b": 1})["b"] for _ in range(2)]))
    assert many.same_pages(single, "a") and many.same_pages(single, "b")


@pytest.mark.parametrize("length", [126, 254, 301])
def test_rejected_drafts_leave_no_trace(kind: str, length: int) -> None:
    # 126 and 254: the drafts complete windows of both ratios, which are then completed again by other tokens.
    drafted, never = World(kind, decode_threshold=6), World(kind, decode_threshold=6)
    drafted.step({"a": length})
    never.step({"a": length})
    for rejected in (5, 4):
        drafted.step({"a": rejected + 1}, -text("draft")[: rejected + 1] * 3)
        drafted.cache.truncate("a", drafted.cache.length("a") - rejected - 1)
        for count in (1, 3):
            rows = drafted.rows({"a": count})
            assert torch.equal(drafted.step({"a": count}, rows)["a"], never.step({"a": count}, rows)["a"])
    assert drafted.same_pages(never, "a")


def test_pages_of_a_request_that_left_are_as_good_as_new(kind: str) -> None:
    used, fresh = World(kind), World(kind)
    used.step({"a": 40, "old": 600})
    left = used.pages(1)
    used.cache.free("old")
    fresh.step({"a": 40})
    for i, new in enumerate(({"b": 500, "a": 60}, {"a": 1, "b": 1}, {"b": 1, "a": 1})):
        got, want = used.step(new), fresh.step(new)
        assert all(torch.equal(got[name], want[name]) for name in new)
        if i == 0:
            assert all(pages & left[group] for group, pages in used.pages(0).items())
    assert used.same_pages(fresh, "a") and used.same_pages(fresh, "b")
