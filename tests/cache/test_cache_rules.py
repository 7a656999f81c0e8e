"""The rules of admission, freeing and truncation, one test each."""

from __future__ import annotations

import pytest
import torch
from cache_model import ROWS, assert_plan, books, plain_plan

from dsv4core.cache import PagedCache, page_counts
from dsv4core.config import AttentionConfig
from dsv4core.errors import CacheError, ConfigError, OutOfPagesError, UnknownRequestError

TINY = AttentionConfig.preset("tiny")


def make(capacity=2000, layers=(0, 1, 2), config=TINY, **more):
    return PagedCache.allocate(config, layers, capacity, "meta", **more)


def table(cache, group, request):
    g = cache._groups[group]
    return g.table[cache._ledger.requests[request].seat].tolist()


def mapped(cache, group, request):
    return [i for i, page in enumerate(table(cache, group, request)) if page >= 0]


def host(config=TINY, layers=(0, 1, 2), capacity=1200, **more):
    return PagedCache.allocate(config, layers, capacity, **more)


def test_plan_advances_lengths_and_follows_the_mapping():
    cache = host(max_requests=4)
    first = cache.plan({"a": 5, "b": 1, "c": 200})
    tables = {n: [table(cache, n, r) for r in "abc"] for n in ROWS}
    assert_plan(first, plain_plan([5, 1, 200], [5, 1, 200], tables))
    assert cache.requests == ("a", "b", "c") and [cache.length(r) for r in "abc"] == [5, 1, 200]
    second = cache.plan({"c": 1, "a": 7}, pad_to=10)
    tables = {n: [table(cache, n, r) for r in "ca"] for n in ROWS}
    assert_plan(second, plain_plan([1, 7], [201, 12], tables, pad_to=10))
    assert cache.tokens == 214
    cache.check_invariants()


def test_only_groups_of_the_layers_are_there():
    assert list(make(layers=[0]).pages) == ["swa"]
    assert list(make(layers=[2]).plan({"a": 1}).slots) == ["swa", "c128", "state_c128"]
    cache = make(layers=[1])
    assert list(cache.plan({"a": 1}).context_lens) == [4] and cache.layers == (1,)
    layer = cache.layer(1)
    assert layer.swa.shape[1:] == (37440,) and layer.compressed.shape[1:] == (37440,)
    assert layer.indexer.shape[1:] == (8640,)
    assert layer.state.shape[1:] == (4, 2048) and layer.state.stride(0) == 8208
    assert layer.indexer_state.shape[1:] == (4, 512) and layer.indexer_state.stride(0) == 2160
    assert list(layer.specs) == ["swa", "c4", "indexer", "state_c4", "state_indexer"]
    bare = make(layers=[0]).layer(0)
    assert bare.compressed is bare.indexer is bare.state is bare.indexer_state is None
    with pytest.raises(CacheError, match=r"layer 0 has no cache.*\[1\]"):
        cache.layer(0)


def test_pages_appear_when_a_row_needs_them():
    cache = make(4000, max_chunk=4000)
    for length, swa, c4, c128, state4, state128 in [
        (3, 1, 0, 0, 1, 1),
        (4, 1, 1, 0, 1, 1),
        (64, 1, 1, 0, 16, 8),
        (65, 2, 1, 0, 17, 9),
        (128, 2, 1, 1, 32, 16),
    ]:
        cache.plan({"a": length - (cache.length("a") if cache.requests else 0)})
        got = [len(mapped(cache, g, "a")) for g in ("swa", "c4", "c128", "state_c4", "state_c128")]
        assert got == [swa, c4, c128, state4, state128]
    cache.plan({"a": 384 + 3 - 128})
    assert len(mapped(cache, "c4", "a")) == 2 and len(mapped(cache, "c128", "a")) == 2


def test_old_pages_are_freed_at_the_start_of_the_next_plan():
    cache = host(layers=[1, 2], max_requests=1, max_chunk=1000)
    cache.plan({"a": 1000})
    assert mapped(cache, "swa", "a") == list(range(16))  # the running step still reads everything
    plan = cache.plan({"a": 1})
    kept = 1000 - 136
    assert mapped(cache, "swa", "a") == list(range(kept // 64, 16))
    assert mapped(cache, "state_c4", "a") == list(range(kept // 4, 251))
    assert mapped(cache, "state_indexer", "a") == list(range(kept // 4, 251))
    assert mapped(cache, "state_c128", "a") == list(range(kept // 8, 126))
    assert mapped(cache, "c4", "a") == [0, 1, 2, 3] and mapped(cache, "c128", "a") == [0, 1, 2, 3]
    assert plan.tables["swa"][0, : kept // 64].tolist() == [-1] * (kept // 64)
    cache.check_invariants()


def test_idle_requests_give_back_their_old_pages_too():
    cache = make(2000, max_chunk=2000)
    cache.plan({"a": 1000})
    free = cache.free_pages["swa"]
    cache.plan({"b": 1})
    assert cache.free_pages["swa"] == free + (1000 - 136) // 64 - 1
    cache.check_invariants()


def test_a_page_with_one_needed_row_stays():
    for rollback in (0, 8, 56):
        cache = make(2000, layers=[0], max_chunk=2000, max_rollback=rollback)
        edge = 128 + rollback + 64  # the first page ends exactly where the kept rows begin
        cache.plan({"a": edge - 1})
        cache.plan({"a": 1})
        assert mapped(cache, "swa", "a")[0] == 0
        cache.plan({"a": 1})
        assert mapped(cache, "swa", "a")[0] == 1


@pytest.mark.parametrize("config", [TINY, AttentionConfig.preset("tiny", decode_threshold=5)])
def test_several_tokens_in_a_decode_step(config):
    cache = host(config)
    cache.plan({"a": 126, "b": 300})
    plan = cache.plan({"a": 5, "b": 2})
    tables = {n: [table(cache, n, r) for r in "ab"] for n in ROWS}
    assert_plan(plan, plain_plan([5, 2], [131, 302], tables, threshold=config.decode_threshold))
    if config.decode_threshold == 5:
        assert plan.num_decode_tokens == 7 and plan.prefill_chunks == ()
        assert plan.context_lens[128].tolist() == [0, 1, 1, 1, 1, 2, 2]
        assert plan.swa_lens.tolist() == [127, 128, 128, 128, 128, 128, 128]


def test_truncate_goes_back_by_max_rollback():
    cache = make(2000, max_chunk=2000)
    cache.plan({"a": 1000})
    assert cache.min_length("a") == 992
    words = r"992 is the least.*again with the same plan; fork\('a', new_id, length=before\)"
    with pytest.raises(CacheError, match=words):
        cache.truncate("a", 991)
    cache.truncate("a", 992)
    assert cache.length("a") == 992
    assert mapped(cache, "state_c4", "a") == list(range(992 // 4))
    assert mapped(cache, "state_c128", "a") == list(range(992 // 8))
    cache.check_invariants()
    with pytest.raises(CacheError, match="it has 992 tokens"):
        cache.truncate("a", 993)
    with pytest.raises(CacheError, match="been 1000 tokens long"):
        cache.truncate("a", 984)  # the allowance counts from the longest, not from the last truncation
    cache.truncate("a", 992)
    cache.plan({"a": 20})
    assert cache.length("a") == 1012 and cache.min_length("a") == 1004
    cache.check_invariants()


def test_truncate_to_nothing_and_grow_again():
    cache = make()
    cache.plan({"a": 8})
    cache.truncate("a", 0)
    assert cache.length("a") == 0 and cache.requests == ("a",)
    assert cache.free_pages == cache.pages
    cache.plan({"a": 2})
    assert cache.length("a") == 2
    cache.check_invariants()


def test_truncate_drops_entries_that_tokens_no_longer_complete():
    cache = host()
    cache.plan({"a": 256 + 3})
    first = cache.plan({"a": 2})  # token 259 completes entry 64, on the second page of C4
    assert first.slots["c4"].tolist()[0] >= 0 and len(mapped(cache, "c4", "a")) == 2
    cache.truncate("a", 259)
    assert len(mapped(cache, "c4", "a")) == 1
    again = cache.plan({"a": 1})
    assert again.slots["c4"].tolist()[0] == table(cache, "c4", "a")[1] * 64
    assert again.context_lens[4].tolist() == [65]
    cache.check_invariants()


@pytest.mark.parametrize("phase", range(9))
def test_rollback_at_every_phase_keeps_window_and_state(phase):
    """The token behind the shortest legal length finds its window and the state rows of its entry."""
    cache = make(2000, max_chunk=2000)
    cache.plan({"a": 500 + phase})
    cache.plan({"a": 8})
    cache.truncate("a", cache.min_length("a"))
    length = cache.length("a")
    assert length == 500 + phase
    cache.plan({"a": 1})
    for group, reach in (("swa", 128), ("state_c4", 8), ("state_indexer", 8), ("state_c128", 128)):
        pages = table(cache, group, "a")
        for position in range(length + 1 - reach, length + 1):
            assert pages[position // ROWS[group]] >= 0


def test_free_gives_everything_back():
    cache = make(max_requests=2)
    cache.plan({"a": 300, "b": 41})
    cache.plan({"a": 1})
    cache.free("a")
    assert cache.requests == ("b",)
    cache.free("b")
    assert cache.free_pages == cache.pages and cache.tokens == 0
    cache.check_invariants()
    cache.plan({"c": 1, "d": 1})
    cache.check_invariants()


def test_an_empty_plan_is_legal():
    cache = make(max_chunk=2000)
    cache.plan({"a": 1000})
    plan = cache.plan({})
    assert (plan.num_tokens, plan.num_requests) == (0, 0)
    assert mapped(cache, "swa", "a")[0] == 13  # it is a step like any other: old pages are given back
    assert cache.plan({}, pad_to=4).num_tokens == 4


def test_unknown_requests():
    cache = make()
    cache.plan({"a": 1})
    for call in (cache.length, cache.free, cache.snapshot, cache.digest, cache.min_length):
        with pytest.raises(UnknownRequestError, match="'z' is not held; held: 'a'"):
            call("z")
    with pytest.raises(UnknownRequestError):
        cache.truncate("z", 0)
    with pytest.raises(KeyError):
        cache.length(None)


def full(**more):
    """A cache with an old request whose pages a next plan would give back, and room for a little more."""
    cache = make(1400, max_requests=2, max_chunk=1000, **more)
    cache.plan({"a": 1000})
    cache.plan({"b": 300})
    cache.truncate("b", 297)
    return cache


NEVER = {
    "nothing": ({"a": 0}, "'a' is 0: a whole number of at least 1"),
    "negative": ({"b": 1, "a": -2}, "'a' is -2"),
    "fraction": ({"a": 1.0}, "'a' is 1.0"),
    "truth value": ({"a": True}, "'a' is True"),
    "text": ({"a": "3"}, "'a' is '3'"),
    "no mapping": (["a"], "by request id"),
    "too long a step": ({"a": 1001}, r"max_chunk=1000 a step.*plan\(\{'a': 1000\}\)"),
    "too long together": ({"a": 600, "b": 500}, "brings 1100 tokens, 600 of them for request 'a'"),
}
NOT_NOW = {
    "capacity": ({"a": 104}, "capacity_tokens=1400.*at most 103 tokens"),
    "requests": ({"a": 1, "c": 1}, "3 requests would be held.*max_requests=2"),
}


@pytest.mark.parametrize("name", [*NEVER, *NOT_NOW])
def test_a_plan_that_fails_changes_nothing(name):
    arguments, words = {**NEVER, **NOT_NOW}[name]
    cache = full()
    before = books(cache)
    error = OutOfPagesError if name in NOT_NOW else CacheError
    with pytest.raises(error, match=words) as caught:
        cache.plan(arguments)
    assert type(caught.value) is error
    assert books(cache) == before
    with pytest.raises(CacheError, match="pad_to"):
        cache.plan({"a": 5}, pad_to=4)
    assert books(cache) == before
    cache.plan({"a": 103})


def test_past_the_positions_of_the_model():
    cache = make(400, config=AttentionConfig.preset("tiny", max_position_embeddings=200))
    cache.plan({"a": 200})
    before = books(cache)
    with pytest.raises(CacheError, match=r"'a' would have 201 tokens.*200 positions"):
        cache.plan({"b": 1, "a": 1})
    assert books(cache) == before


def test_truncate_that_fails_changes_nothing():
    cache = full()
    before = books(cache)
    for bad in (-1, 1.5, True, None, 301, 991 - 700):
        with pytest.raises(CacheError):
            cache.truncate("b", bad)
    assert books(cache) == before


def test_out_of_pages_names_the_group_and_changes_nothing():
    specs = {s.key: s for s in make(layers=[1]).specs.values()}
    pages = {"swa.1": 6, "c4.1": 2, "indexer.1": 1, "state_c4.1": 80, "state_indexer.1": 80}
    tensors = {k: torch.zeros((pages[k], s.page_bytes), dtype=torch.uint8) for k, s in specs.items()}
    cache = PagedCache.from_tensors(TINY, tensors)
    cache.plan({"a": 250})
    before = books(cache)
    with pytest.raises(OutOfPagesError, match=r"'indexer' needs 1 pages.*0 of 1 are free"):
        cache.plan({"a": 1, "b": 9})
    assert books(cache) == before
    with pytest.raises(OutOfPagesError, match="'swa' needs"):
        cache.plan({"a": 5, "b": 300})
    assert books(cache) == before
    cache.plan({"a": 5, "b": 3})  # the pages a gives back are enough for this
    cache.check_invariants()


def test_a_step_that_cannot_build_its_plan_changes_nothing(monkeypatch):
    """Whatever goes wrong behind the books, memory on a device for example."""
    cache = full()
    before = books(cache)

    def fail(*args, **kwargs):
        raise RuntimeError("device out of memory")

    monkeypatch.setattr("dsv4core.plan.build._window", fail)
    with pytest.raises(RuntimeError):
        cache.plan({"a": 5})
    assert books(cache) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"capacity_tokens": 0}, "capacity_tokens is 0"),
        ({"capacity_tokens": 1.5}, "capacity_tokens is 1.5"),
        ({"layers": []}, "layers is empty"),
        ({"layers": ["0"]}, "layers: a layer is '0'"),
        ({"layers": 1}, r"layers is 1: pass layer numbers, for example \[1\]"),
        ({"max_requests": 0}, "max_requests is 0"),
        ({"max_chunk": 0}, "max_chunk is 0"),
        ({"max_rollback": -1}, "max_rollback is -1"),
        ({"max_requests": 2**20 + 1}, "max_requests is 1048577: at most 1048576 is possible"),
        ({"max_requests": 2**31}, "max_requests is 2147483648: at most 1048576"),
        ({"max_requests": None}, "max_requests is None"),
        ({"max_rollback": None}, "max_rollback is None"),
        ({"capacity_tokens": None}, "capacity_tokens is None"),
        ({"rows": {"swa": -1}}, r"rows\['swa'\]"),
    ],
)
def test_wrong_allocations(arguments, words):
    with pytest.raises(CacheError, match=words):
        PagedCache.allocate(TINY, **{"layers": [0, 1], "capacity_tokens": 10, "device": "meta", **arguments})
    with pytest.raises(ConfigError):
        PagedCache.allocate(TINY, [7], 10, "meta")


def test_what_has_no_hash_is_no_request():
    cache = full()
    before = books(cache)
    for call in (cache.free, cache.length, cache.min_length, cache.export, lambda i: cache.fork(i, "q")):
        for wrong in ([], ("x", [])):
            with pytest.raises(UnknownRequestError, match=r"is not held; held: 'a'"):
                call(wrong)
    with pytest.raises(CacheError, match=r"layer \[\] has no cache here"):
        cache.layer([])
    assert books(cache) == before


def test_tensors_are_given_by_key():
    with pytest.raises(CacheError, match=r"tensor 5: keys are 'group.layer'"):
        PagedCache.from_tensors(TINY, {5: torch.zeros(1)})
    with pytest.raises(CacheError, match="tensors is a list"):
        PagedCache.from_tensors(TINY, [torch.zeros(1)])


def test_page_counts_take_whole_numbers():
    with pytest.raises(CacheError, match="capacity_tokens is None"):
        page_counts(TINY, [0], None)
    with pytest.raises(CacheError, match="max_requests is None"):
        page_counts(TINY, [0], 100, max_requests=None)


@pytest.mark.parametrize("pad_to", [2**22 + 1, 2**33])
def test_more_padding_than_memory_is_refused_and_changes_nothing(pad_to):
    cache = full()
    before = books(cache)
    with pytest.raises(CacheError, match=rf"pad_to is {pad_to}: at most 4194304 is possible"):
        cache.plan({"a": 5}, pad_to=pad_to)
    assert books(cache) == before


def test_more_than_the_host_can_map_is_refused_with_the_size():
    with pytest.raises(CacheError, match=r"'c4\.1': \d+ pages of 37440 bytes.*smaller capacity_tokens"):
        PagedCache.allocate(TINY, [1], 10**30)


def test_a_cache_made_in_inference_mode_is_used_outside():
    with torch.inference_mode():
        cache = PagedCache.allocate(TINY, [1], 1024)
        cache.plan({"a": 70})
    cache.fork("a", "b")
    cache.import_(cache.export("a"), "c")
    assert cache.digest("b") == cache.digest("c") == cache.digest("a")


def test_a_plan_is_not_touched_by_later_steps():
    cache = host(max_chunk=1200)
    plan = cache.plan({"a": 900})
    tables = {n: t.clone() for n, t in plan.tables.items()}
    cache.plan({"b": 100})
    cache.free("a")
    assert all(torch.equal(tables[n], t) for n, t in plan.tables.items())
