"""Forks: what they share, what they copy, when they are refused."""

from __future__ import annotations

import pytest
import torch
from request_world import (
    LAYERS,
    TINY,
    History,
    assert_bytes,
    books,
    content,
    dirty,
    few_pages,
    step,
    unchanged,
)

from dsv4core.cache import PagedCache
from dsv4core.errors import CacheError, OutOfPagesError, UnknownRequestError


def made(capacity=2000, **limits):
    cache = dirty(
        PagedCache.allocate(TINY, LAYERS, capacity, **{"max_requests": 6, "max_chunk": 600} | limits)
    )
    return cache, {}


def grow(cache, histories, new, token=1):
    return step(cache, histories, new, {i: range(token, token + n) for i, n in new.items()})


def forked(cache, histories, source, new_id, length=None):
    cache.fork(source, new_id, length=length)
    histories[new_id] = History(histories[source].hashes[:length])


def check(cache, histories):
    cache.check_invariants()
    for request, history in histories.items():
        assert_bytes(cache, request, history)


def test_full_pages_are_shared_and_partly_filled_ones_copied():
    cache, histories = made()
    grow(cache, histories, {"a": 531})
    free = cache.free_pages
    forked(cache, histories, "a", "b")
    # 531 tokens: 132 entries of ratio 4 and 4 of ratio 128, 531 % 64, % 4 and % 8 are not 0.
    copied = {"swa": 1, "c4": 1, "indexer": 1, "state_c4": 1, "state_indexer": 1, "c128": 0, "state_c128": 1}
    assert {name: free[name] - n for name, n in cache.free_pages.items()} == copied
    private = cache.private_bytes("b")
    assert private == {
        name: sum(copied[name] * s.page_bytes for s in cache.specs.values() if s.group == name)
        for name in copied
    }
    check(cache, histories)
    grow(cache, histories, {"a": 40, "b": 7}, token=5)
    grow(cache, histories, {"b": 300}, token=9)
    check(cache, histories)


@pytest.mark.parametrize("length", [256, 512])
def test_nothing_is_copied_where_every_page_ends(length):
    cache, histories = made()
    grow(cache, histories, {"a": length})
    free = cache.free_pages
    forked(cache, histories, "a", "b")
    assert cache.free_pages == free and set(cache.private_bytes("b").values()) == {0}
    grow(cache, histories, {"a": 3, "b": 4}, token=7)
    check(cache, histories)


@pytest.mark.parametrize("victim", ["a", "b"])
@pytest.mark.parametrize("back", range(1, 9))
def test_a_shared_page_is_copied_before_it_is_written(victim, back):
    """Truncated into a page that both hold: the writer gets its own one, whoever it is."""
    cache, histories = made()
    grow(cache, histories, {"a": 511})
    grow(cache, histories, {"a": 1})  # gives old pages back
    forked(cache, histories, "a", "b")
    cache.truncate(victim, 512 - back)
    del histories[victim].hashes[512 - back :]
    shared = {name: group.shared for name, group in cache._groups.items()}
    answer = cache.can_admit({victim: 2})
    free = cache.free_pages
    grow(cache, histories, {victim: 2}, token=99)
    drawn = {name: free[name] - n for name, n in cache.free_pages.items()}
    assert answer and drawn["swa"] == answer.needed["swa"] == (
        2 if back == 1 else 1
    )  # and a new page behind it
    assert cache._groups["swa"].shared < shared["swa"]
    check(cache, histories)
    grow(cache, histories, {victim: 20, "b" if victim == "a" else "a": 20}, token=5)
    check(cache, histories)


def test_the_last_holder_writes_in_place():
    """Two requests write into one shared page in the same step: one copy is enough."""
    cache, histories = made()
    grow(cache, histories, {"a": 511})
    grow(cache, histories, {"a": 1})  # gives old pages back
    forked(cache, histories, "a", "b")
    for request in "ab":
        cache.truncate(request, 510)
        del histories[request].hashes[510:]
    free = cache.free_pages["swa"]
    step(cache, histories, {"a": 1, "b": 1}, {"a": [5], "b": [6]})
    assert free - cache.free_pages["swa"] == 1
    check(cache, histories)


def test_a_chain_of_forks_outlives_its_source():
    cache, histories = made()
    grow(cache, histories, {"a": 300})
    for source, new_id in ("ab", "bc", "cd"):
        forked(cache, histories, source, new_id)
        grow(cache, histories, {new_id: 5}, token=ord(new_id))
    for request in "ab":
        cache.free(request)
        del histories[request]
    grow(cache, histories, {"c": 200, "d": 100}, token=3)
    check(cache, histories)


def test_a_prefix_is_kept_by_forking_it_and_costs_its_private_pages():
    """Boundaries are kept while prefill passes them, in every phase, and resumed long after."""
    cache, histories = made(max_requests=12)
    lengths = [130, 200, 256, 259, 300, 388]
    for n in (140, 130, 130):
        grow(cache, histories, {"a": n}, token=n)
        low, high = cache.resume_range("a")
        for length in lengths:
            if low <= length <= high and ("prefix", length) not in histories:
                forked(cache, histories, "a", ("prefix", length), length)
    assert set(histories) == {"a", *(("prefix", n) for n in lengths)}
    grow(cache, histories, {"a": 400}, token=4)
    cache.free("a")
    del histories["a"]
    for length in lengths:
        forked(cache, histories, ("prefix", length), "r")
        grow(cache, histories, {"r": 21}, token=length)
        check(cache, histories)
        cache.free("r")
        del histories["r"]


def test_tokens_of_shared_blocks_count_once():
    cache, histories = made(capacity=1100, max_requests=6)
    grow(cache, histories, {"a": 600})
    for request in "bcd":
        forked(cache, histories, "a", request)  # 600 = 2 blocks of 256 that are shared, and 88 more tokens
    assert cache.tokens == 2400 and cache._ledger.counted == 600 + 3 * 88
    with pytest.raises(OutOfPagesError, match=r"bring at most 236 tokens"):
        cache.plan({"a": 237})
    assert not cache.can_admit({"a": 237}) and cache.can_admit({"a": 236})
    cache.free("a")
    assert cache._ledger.counted == 600 + 2 * 88 - 0
    grow(cache, histories | {}, {"b": 300}, token=3)
    cache.check_invariants()


def test_a_block_that_is_truncated_counts_again():
    cache, histories = made(capacity=520)
    grow(cache, histories, {"a": 512})
    forked(cache, histories, "a", "b")
    assert cache._ledger.counted == 512
    cache.truncate("b", 510)
    assert cache._ledger.counted == 512 + 254
    assert not cache.can_admit({"a": 1})
    cache.free("b")
    assert cache._ledger.counted == 512 and cache.can_admit({"a": 8})


def test_illegal_lengths_name_the_legal_ones():
    cache, histories = made()
    grow(cache, histories, {"a": 500})
    grow(cache, histories, {"a": 100})
    low, high = cache.resume_range("a")
    # 500 - 136 = 364: window page 320.., state pages 364.. and 360..
    assert (low, high) == (364 + 128, 600)
    before = books(cache), content(cache)
    for length in (0, 1, 128, 256, low - 1, 601, 10_000):
        with pytest.raises(CacheError, match=rf"Legal lengths are {low} to {high}, the nearest is") as caught:
            cache.fork("a", "b", length=length)
        assert f"the nearest is {low if length < low else high}" in str(caught.value)
        with pytest.raises(CacheError, match=r"Legal lengths are"):
            cache.export("a", length=length)
    for length in (-1, 2.5, "500", True):
        with pytest.raises(CacheError, match="whole number"):
            cache.fork("a", "b", length=length)
    assert unchanged(cache, before)
    for length in (low, low + 1, 512, 599, 600):
        forked(cache, histories, "a", length, length)
    check(cache, histories)


def test_every_length_of_a_short_request_is_legal():
    cache, histories = made(max_requests=3)
    grow(cache, histories, {"a": 136})
    for length in range(137):
        assert cache.resume_range("a") == (0, 136)
        forked(cache, histories, "a", "b", length)
        assert cache.min_length("b") == max(length - 8, 0)
        if length % 20 == 7:
            grow(cache, histories, {"b": 130}, token=length)
            check(cache, histories)
        cache.free("b")
        del histories["b"]


def test_a_fork_can_be_truncated_but_not_below_what_its_source_had():
    cache, histories = made()
    grow(cache, histories, {"a": 500})
    grow(cache, histories, {"a": 100})
    forked(cache, histories, "a", "b", 495)
    assert (cache.min_length("b"), cache.resume_range("b")) == (492, (492, 495))
    with pytest.raises(CacheError, match="492 is the least"):
        cache.truncate("b", 491)
    cache.truncate("b", 492)
    del histories["b"].hashes[492:]
    grow(cache, histories, {"b": 9}, token=77)
    check(cache, histories)


def test_wrong_requests():
    cache, histories = made()
    grow(cache, histories, {"a": 10, "b": 5})
    before = books(cache), content(cache)
    with pytest.raises(UnknownRequestError, match="'x' is not held"):
        cache.fork("x", "c")
    with pytest.raises(CacheError, match="'b' is held already, with 5 tokens"):
        cache.fork("a", "b")
    with pytest.raises(CacheError, match="hashable"):
        cache.fork("a", ["c"])
    assert unchanged(cache, before)


def test_limits_refuse_a_fork_and_change_nothing():
    cache, histories = made(capacity=20, max_requests=2)
    grow(cache, histories, {"a": 12})
    before = books(cache), content(cache)
    with pytest.raises(OutOfPagesError, match="bring at most 8 tokens"):
        cache.fork("a", "b")
    assert unchanged(cache, before)
    forked(cache, histories, "a", "b", 8)
    with pytest.raises(OutOfPagesError, match="max_requests=2"):
        cache.fork("a", "c", length=4)


@pytest.mark.parametrize("short", ["swa", "c4", "indexer", "c128", "state_c4", "state_indexer", "state_c128"])
def test_missing_pages_refuse_a_fork_and_change_nothing(short):
    pages = {
        "swa": 10,
        "c4": 4,
        "indexer": 4,
        "c128": 3,
        "state_c4": 130,
        "state_indexer": 130,
        "state_c128": 70,
    }
    held = {"swa": 3, "c4": 1, "indexer": 1, "c128": 1, "state_c4": 34, "state_indexer": 34, "state_c128": 17}
    cache, histories = few_pages(pages | {short: held[short]}), {}
    grow(cache, histories, {"a": 134})
    before = books(cache), content(cache)
    with pytest.raises(OutOfPagesError, match=rf"group '{short}' needs 1 pages of its own; 0 of"):
        cache.fork("a", "b")
    assert unchanged(cache, before)


def test_running_out_of_memory_while_copying_changes_nothing(monkeypatch):
    cache, histories = made()
    grow(cache, histories, {"a": 135})
    before = books(cache), content(cache)

    def fail(*_):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("dsv4core.cache.base.stage_copy", fail)
        with pytest.raises(RuntimeError):
            cache.fork("a", "b")
    assert unchanged(cache, before)
    forked(cache, histories, "a", "b")
    check(cache, histories)


def test_private_bytes_of_all_requests_and_their_shared_pages_are_the_pages_held():
    cache, histories = made()
    grow(cache, histories, {"a": 520})
    assert cache.private_bytes("a") == {
        name: sum(
            (cache.pages[name] - cache.free_pages[name]) * s.page_bytes
            for s in cache.specs.values()
            if s.group == name
        )
        for name in cache.pages
    }
    forked(cache, histories, "a", "b")
    before = cache.free_pages
    own = cache.private_bytes("b")
    cache.free("b")
    freed = {name: cache.free_pages[name] - before[name] for name in before}
    assert own == {
        name: sum(freed[name] * s.page_bytes for s in cache.specs.values() if s.group == name)
        for name in freed
    }


def test_forks_of_state_views_and_strided_pages():
    """An engine's pages: columns of one wide allocation, states as f32 views."""
    config = TINY
    specs = PagedCache.allocate(config, LAYERS, 512, "meta").specs
    wide = sum(s.page_bytes for s in specs.values())
    whole = torch.full((60, wide), 0x5A, dtype=torch.uint8)
    tensors, at = {}, 0
    for key, spec in specs.items():
        tensors[key] = whole[:, at : at + spec.page_bytes]
        at += spec.page_bytes
    cache, histories = PagedCache.from_tensors(config, tensors), {}
    grow(cache, histories, {"a": 131})
    forked(cache, histories, "a", "b")
    grow(cache, histories, {"a": 3, "b": 2}, token=5)
    check(cache, histories)
