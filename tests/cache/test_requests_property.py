"""Random plans, truncations, frees, forks and imports over 16 requests in two caches of unlike geometry."""

from __future__ import annotations

from functools import lru_cache

from hypothesis import event, given, settings
from hypothesis import strategies as st
from request_world import (
    LAYERS,
    OTHER_ROWS,
    TINY,
    History,
    assert_bytes,
    books,
    dirty,
    few_pages,
    renewed,
    step,
)

from dsv4core.cache import PagedCache, RequestExport
from dsv4core.errors import CacheError, OutOfPagesError

IDS = st.integers(0, 15)
LIVE = st.integers(0, 10_000)  # which of the requests held, or now and then any id
COUNT = st.one_of(st.integers(1, 9), st.integers(30, 150))
WHERE = st.integers(0, 1)
PLAN = st.tuples(st.just("plan"), WHERE, st.tuples(st.dictionaries(LIVE, COUNT, max_size=4), st.booleans()))
FORK = st.tuples(
    st.just("fork"), WHERE, st.tuples(LIVE, IDS, st.one_of(st.integers(0, 9), st.integers(-3, 200)))
)
BACK = st.tuples(st.just("truncate"), WHERE, st.tuples(LIVE, st.integers(0, 10)))
FREE = st.tuples(st.just("free"), WHERE, LIVE)
MOVE = st.tuples(
    st.just("move"), WHERE, st.tuples(LIVE, IDS, WHERE, st.one_of(st.just(0), st.integers(-1, 150)))
)
ACTIONS = st.one_of(PLAN, PLAN, FORK, FORK, BACK, BACK, FREE, MOVE)


@lru_cache
def pair(tight):
    """Two caches: with few pages and no other limit, or with limits within which pages never run out."""
    if tight:
        few = {"swa": 9, "c4": 6, "indexer": 6, "c128": 5}
        few |= {"state_c4": 130, "state_indexer": 128, "state_c128": 70}
        more = {"swa": 30, "c4": 30, "indexer": 20, "c128": 4}
        more |= {"state_c4": 160, "state_indexer": 70, "state_c128": 36}
        return few_pages(few), few_pages(more, rows=OTHER_ROWS, max_rollback=4)
    sizes = {"max_requests": 16, "max_chunk": 300}
    other = {"max_requests": 9, "max_chunk": 400, "max_rollback": 3, "rows": OTHER_ROWS}
    return (
        dirty(PagedCache.allocate(TINY, LAYERS, 1500, **sizes)),
        dirty(PagedCache.allocate(TINY, LAYERS, 1100, **other)),
    )


class World:
    """Two caches and, for each, the tokens of every request."""

    def __init__(self, tight):
        self.tight = tight
        self.caches = [renewed(cache) for cache in pair(tight)]
        self.histories = [{}, {}]
        self.serial = 0

    def attempt(self, where, call):
        """Do something that may be refused; a refusal changes nothing and, within limits, is not of pages."""
        before = books(self.caches[where])
        try:
            return call() or True
        except CacheError as error:
            assert books(self.caches[where]) == before
            assert self.tight or "group" not in str(error) or not isinstance(error, OutOfPagesError)
            event(type(error).__name__)
            return False

    def live(self, where, number):
        """The id of a request that is held, mostly."""
        held = sorted(self.histories[where])
        return held[number % len(held)] if held and number % 13 else number % 16

    def plan(self, where, what):
        new = {self.live(where, number): n for number, n in what[0].items()}
        if what[1]:
            new[len(self.histories[where])] = 20 + len(new) * 40
        cache, histories = self.caches[where], self.histories[where]
        tokens = {i: range(self.serial + 1000 * i, self.serial + 1000 * i + n) for i, n in new.items()}
        self.serial += max(new.values(), default=0)
        shared = sum(group.shared for group in cache._groups.values())
        answer = cache.can_admit(new)
        planned = self.attempt(where, lambda: step(cache, histories, new, tokens))
        assert bool(answer) == bool(planned), answer
        assert answer.ok == (not answer.reason)
        if planned and len(new) < len(histories) and shared > sum(g.shared for g in cache._groups.values()):
            event("a shared page moved or expired")

    def fork(self, where, what):
        source, new_id, back = self.live(where, what[0]), *what[1:]
        cache, histories = self.caches[where], self.histories[where]
        wanted = len(histories.get(source, ())) - back
        low, high = cache.resume_range(source) if source in histories else (0, -1)
        done = self.attempt(where, lambda: cache.fork(source, new_id, length=wanted))
        if done:
            assert low <= wanted <= high and new_id not in histories
            histories[new_id] = History(histories[source].hashes[:wanted])
            event("fork")
        elif low <= wanted <= high and new_id not in histories and not self.tight:
            limits = cache.limits
            over = cache._ledger.counted + wanted % cache._ledger.blocks.size > limits.capacity_tokens
            assert over or len(histories) == limits.max_requests

    def truncate(self, where, what):
        request, back = self.live(where, what[0]), what[1]
        cache, histories = self.caches[where], self.histories[where]
        target = len(histories.get(request, ())) - back
        if request in histories and target >= cache.min_length(request):
            cache.truncate(request, target)
            del histories[request].hashes[target:]
        else:
            assert not self.attempt(where, lambda: cache.truncate(request, target))

    def free(self, where, request):
        request = self.live(where, request)
        if self.attempt(where, lambda: self.caches[where].free(request)):
            del self.histories[where][request]

    def move(self, where, what):
        request, new_id, target, back = self.live(where, what[0]), *what[1:]
        cache, histories = self.caches[where], self.histories[where]
        length = len(histories.get(request, ())) - back
        exported = []
        if not self.attempt(where, lambda: exported.append(cache.export(request, length=length))):
            return
        data = exported[0].to_bytes()
        copy = RequestExport.from_bytes(data)
        assert copy.checksum == exported[0].checksum and copy.length == length
        if self.attempt(target, lambda: self.caches[target].import_(copy, new_id)):
            self.histories[target][new_id] = History(histories[request].hashes[:length])
            event("import")

    def check(self):
        for cache, histories in zip(self.caches, self.histories, strict=True):
            cache.check_invariants()
            assert set(cache.requests) == set(histories)
            for request, history in histories.items():
                assert_bytes(cache, request, history)


@settings(max_examples=60, deadline=None)
@given(actions=st.lists(ACTIONS, min_size=6, max_size=30), tight=st.booleans())
def test_every_request_is_what_its_tokens_make_it(actions, tight):
    world = World(tight)
    for where, n in ((0, 270), (1, 140)):
        world.plan(where, ({0: n}, False))
    for number, (name, where, what) in enumerate(actions):
        getattr(world, name)(where, what)
        if number % 3 == 0:
            world.check()
    world.check()
    for where in (0, 1):
        cache = world.caches[where]
        for request in cache.requests:
            cache.free(request)
        cache.check_invariants()
        assert cache.free_pages == cache.pages
        assert cache._ledger.counted == 0 and not cache._ledger.blocks._holders


@settings(max_examples=40, deadline=None)
@given(
    limits=st.tuples(st.integers(2, 6), st.integers(1, 400), st.integers(0, 20)),
    capacity=st.integers(200, 1200),
    small=st.booleans(),
    actions=st.lists(
        st.tuples(st.sampled_from("pppffft-"), st.integers(0, 5), st.integers(0, 5), st.integers(1, 300)),
        max_size=40,
    ),
)
def test_pages_never_run_out_within_the_limits(limits, capacity, small, actions):
    """Whatever forks share and truncations tear apart: only the stated limits refuse a step or a fork."""
    requests, chunk, rollback = limits
    sizes = {"max_requests": requests, "max_chunk": chunk, "max_rollback": rollback}
    cache = PagedCache.allocate(
        TINY, LAYERS, capacity, "meta", rows=dict.fromkeys(OTHER_ROWS, 5) if small else None, **sizes
    )
    for kind, one, two, n in actions:
        try:
            if kind == "p":
                cache.plan({i: max(min(n, chunk // 2), 1) for i in {one, two}})
            elif kind == "f":
                low, high = cache.resume_range(one)
                cache.fork(one, two, length=max(high - n % 40, low))
            elif kind == "t":
                cache.truncate(one, max(cache.min_length(one), cache.length(one) - n % (rollback + 1)))
            else:
                cache.free(one)
        except CacheError as error:
            assert "group" not in str(error)
    cache.check_invariants()
