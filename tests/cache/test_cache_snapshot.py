"""Snapshots: what a request owns, whatever the steps in which it came about."""

from __future__ import annotations

import pytest
import torch

from dsv4core.cache import PagedCache
from dsv4core.config import AttentionConfig
from dsv4core.layout import get_layout

TINY = AttentionConfig.preset("tiny")
MATH = AttentionConfig.preset("tiny", profile="math", main_layout="f32_row")


def content(key, request, rows, width):
    """Bytes of rows: a function of what a row is, never of where it lies."""
    seed = sum(ord(c) * 31**i for i, c in enumerate(f"{key}/{request}")) % 9973
    rows = torch.as_tensor(rows)[..., None]
    start = (rows * 131 + seed * 17) % 251
    return ((torch.arange(width) * 7 % 251).to(torch.int16) + start.to(torch.int16) + 1).to(torch.uint8)


def run(cache, steps, salt=""):
    """Plan a step and write every row that the plan names, into every cache of every layer."""
    plan = cache.plan(steps)
    for new, old in enumerate(plan.request_order):
        start, end = plan.query_start_loc[new : new + 2].tolist()
        for key, spec in cache.specs.items():
            slots = plan.slots[spec.group][start:end]
            rows = plan.positions[start:end][slots >= 0] // spec.tokens_per_row
            slots = slots[slots >= 0]
            width = spec.row_width if spec.dtype == "f32" else spec.record_bytes
            data = content(key, list(steps)[old] + salt, rows, width)
            storage = cache._tensors[key]
            if spec.dtype == "f32":
                storage[slots // spec.rows, slots % spec.rows] = data.float()
            else:
                get_layout(spec.layout).write(storage, slots, data, spec.rows)
    return plan


def dirty(config=TINY):
    """A cache full of garbage that nobody owns."""
    cache = PagedCache.allocate(config, [0, 1, 2], 320, max_requests=3, max_chunk=300)
    for tensor in cache._tensors.values():
        tensor.fill_(0x5A)
    return cache


def reference(lengths, config=TINY, salt=""):
    cache = PagedCache.allocate(config, [0, 1, 2], 320, max_requests=3, max_chunk=300)
    for request, n in lengths.items():
        run(cache, {request: n}, salt)
    return cache


@pytest.mark.parametrize("config", [TINY, MATH])
def test_digest_does_not_depend_on_steps(config):
    once = reference({"a": 270, "b": 3}, config)
    pieces = dirty(config)
    for a, b in [(1, 0), (5, 1), (3, 0), (131, 0), (64, 1), (63, 0), (2, 1), (1, 0)]:
        run(pieces, {"b": b, "a": a} if b else {"a": a})
    run(pieces, {"c": 40})
    assert pieces.length("a") == 270
    for request in "ab":
        assert pieces.digest(request) == once.digest(request)
        assert pieces.digest(request)["swa.0"] != pieces.digest("c")["swa.0"]
    assert list(once.digest("a")) == list(once.specs)


def test_a_rollback_leaves_no_trace():
    """Rejected drafts wrote other bytes into rows, entries and pages: none of them is in the snapshot."""
    straight = reference({"a": 262})
    cache = dirty()
    run(cache, {"a": 200})
    run(cache, {"a": 52})
    for target, drafts in [(254, 8), (256, 8), (262, 7)]:
        run(cache, {"a": target - cache.length("a")})
        run(cache, {"a": drafts}, salt="rejected")
        cache.truncate("a", target)
    assert cache.digest("a") == straight.digest("a")
    cache.check_invariants()


def test_rows_not_owned_are_zero():
    cache = dirty()
    run(cache, {"a": 201})
    run(cache, {"b": 64})
    pages = cache.snapshot("a")
    first = 201 - 128
    swa = get_layout("fp8_ds_mla").read(pages["swa.1"], torch.arange(len(pages["swa.1"]) * 64), 64)
    assert len(pages["swa.1"]) == 3  # pages 1, 2, 3 of the request
    for row, record in enumerate(swa, start=64):
        wanted = (
            content("swa.1", "a", row, 584) if first <= row < 201 else torch.zeros(584, dtype=torch.uint8)
        )
        assert torch.equal(record, wanted), row
    entries = get_layout("index_fp8").read(pages["indexer.1"], torch.arange(64), 64)
    for row, record in enumerate(entries):
        wanted = content("indexer.1", "a", row, 132) if row < 50 else torch.zeros(132, dtype=torch.uint8)
        assert torch.equal(record, wanted), row
    state = pages["state_c128.2"].view(torch.float32)[:, : 8 * 1024].reshape(-1, 1024)
    assert pages["state_c128.2"].shape == (26 - first // 8, 32832)
    for row, values in enumerate(state, start=first // 8 * 8):
        assert bool(values.any()) == (first <= row < 201), row
    assert not any(bool(p[:, cache.specs[k].payload_bytes :].any()) for k, p in pages.items())


def test_snapshot_is_a_copy():
    cache = dirty()
    run(cache, {"a": 10})
    before = cache.digest("a")
    for pages in cache.snapshot("a").values():
        pages.zero_()
    assert cache.digest("a") == before


def test_one_byte_changes_the_digest():
    cache = dirty()
    run(cache, {"a": 130})
    before = cache.digest("a")
    page = int(cache._groups["c128"].table[0, 0])
    cache.layer(2).compressed[page, 5] ^= 1
    after = cache.digest("a")
    assert {k for k in before if before[k] != after[k]} == {"c128.2"}


def test_a_request_without_tokens_has_no_pages():
    cache = dirty()
    run(cache, {"a": 3})
    assert cache.snapshot("a")["c4.1"].shape == (0, 37440)
    cache.truncate("a", 0)
    assert {p.shape[0] for p in cache.snapshot("a").values()} == {0}
    assert len(set(cache.digest("a").values())) == 1
