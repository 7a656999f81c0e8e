"""Random steps over several requests, against a dictionary that remembers who wrote which row last."""

from __future__ import annotations

from cache_model import ENTRY_RATIO, ROWS, assert_plan, books, plain_plan
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv4core.cache import PagedCache
from dsv4core.config import AttentionConfig
from dsv4core.errors import CacheError, OutOfPagesError

STEP = st.tuples(
    st.just("plan"),
    st.dictionaries(
        st.sampled_from("abcde"), st.one_of(st.integers(1, 9), st.integers(40, 260)), min_size=0, max_size=4
    ),
    st.integers(0, 3),
)
BACK = st.tuples(st.just("truncate"), st.sampled_from("abcde"), st.integers(0, 12))
FREE = st.tuples(st.just("free"), st.sampled_from("abcde"), st.just(0))
REACH = {"swa": 128, "state_c4": 8, "state_indexer": 8, "state_c128": 128}


class World:
    """Requests as lists of token names, and the last writer of every slot."""

    def __init__(self, threshold):
        config = AttentionConfig.preset("tiny", decode_threshold=threshold)
        self.threshold = threshold
        self.cache = PagedCache.allocate(
            config, [0, 1, 2], 900, max_requests=4, max_chunk=300, max_rollback=8
        )
        self.tokens = {}
        self.peak = {}
        self.rows = {}
        self.serial = 0

    def plan(self, new, pad):
        total, held = sum(new.values()), sum(map(len, self.tokens.values()))
        fits = total <= 300 and held + total <= 900 and len({*self.tokens, *new}) <= 4
        before = books(self.cache)
        try:
            plan = self.cache.plan(new, pad_to=total + pad)
        except CacheError as error:
            assert not fits and books(self.cache) == before
            assert isinstance(error, OutOfPagesError) == (total <= 300)
            return
        assert fits
        for request, n in new.items():
            tokens = self.tokens.setdefault(request, [])
            tokens += range(self.serial, self.serial + n)
            self.serial += n
            self.peak[request] = max(self.peak.get(request, 0), len(tokens))
        ids = list(new)
        tables = {name: self.tables(name, ids) for name in ROWS}
        lengths = [len(self.tokens[i]) for i in ids]
        queries = list(new.values())
        if ids:
            assert_plan(
                plan, plain_plan(queries, lengths, tables, threshold=self.threshold, pad_to=total + pad)
            )
        self.write(plan, ids)
        self.read(plan, ids)

    def tables(self, name, ids):
        group = self.cache._groups[name]
        return [group.table[self.cache._ledger.requests[i].seat].tolist() for i in ids]

    def write(self, plan, ids):
        position, request = plan.positions.tolist(), plan.token_to_req.tolist()
        for name, slots in plan.slots.items():
            for t, slot in enumerate(slots.tolist()):
                if slot >= 0:
                    token = self.tokens[ids[plan.request_order[request[t]]]][position[t]]
                    self.rows[name, slot] = token
            if name not in ENTRY_RATIO:
                assert (slots >= 0).sum() == plan.num_tokens - plan.num_padding

    def read(self, plan, ids):
        """Every token of the step sees the last 128 positions of its own request, decode rows all entries."""
        position, request = plan.positions.tolist(), plan.token_to_req.tolist()
        windows, entries = plan.swa_slots.tolist(), plan.c128_slots.tolist()
        for t in range(plan.num_tokens - plan.num_padding):
            tokens, p = self.tokens[ids[plan.request_order[request[t]]]], position[t]
            seen = [self.rows["swa", s] for s in windows[t] if s >= 0]
            assert seen == tokens[max(p - 127, 0) : p + 1]
            if t < plan.num_decode_tokens:
                assert [self.rows["c128", s] for s in entries[t] if s >= 0] == tokens[: p + 1][127::128]

    def truncate(self, request, back):
        if request not in self.tokens:
            return
        tokens = self.tokens[request]
        target, before = len(tokens) - back, books(self.cache)
        try:
            self.cache.truncate(request, target)
        except CacheError:
            assert target < max(self.peak[request] - 8, 0) and books(self.cache) == before
            return
        assert target >= max(self.peak[request] - 8, 0)
        del tokens[target:]

    def free(self, request, _):
        if request in self.tokens:
            self.cache.free(request)
            del self.tokens[request], self.peak[request]

    def check(self):
        """Pages have one owner; rows that the next token may need are there and are this request's."""
        self.cache.check_invariants()
        assert set(self.cache.requests) == set(self.tokens)
        owners = set()
        for request, tokens in self.tokens.items():
            assert self.cache.length(request) == len(tokens)
            for name, rows in ROWS.items():
                table = self.tables(name, [request])[0]
                for page in table:
                    assert page < 0 or (name, page) not in owners
                    owners.add((name, page))
                ratio = ENTRY_RATIO.get(name)
                kept = (
                    range(len(tokens) // ratio)
                    if ratio
                    else range(max(len(tokens) + 1 - REACH[name], 0), len(tokens))
                )
                for row in kept:
                    writer = tokens[(row + 1) * (ratio or 1) - 1]
                    assert self.rows[name, table[row // rows] * rows + row % rows] == writer
        free = {(name, page) for name, group in self.cache._groups.items() for page in group.free}
        assert not owners & free


@settings(max_examples=25, deadline=None)
@given(
    actions=st.lists(st.one_of(STEP, STEP, BACK, FREE), min_size=1, max_size=14),
    threshold=st.sampled_from([1, 4]),
)
def test_random_plans_truncations_and_frees(actions, threshold):
    world = World(threshold)
    for name, first, second in actions:
        getattr(world, name)(first, second)
        world.check()
    for request in list(world.tokens):
        world.free(request, 0)
    assert world.cache.free_pages == world.cache.pages and world.cache.tokens == 0
    world.cache.check_invariants()


@settings(max_examples=25, deadline=None)
@given(
    limits=st.tuples(st.integers(1, 6), st.integers(1, 500), st.integers(0, 20)),
    capacity=st.integers(1, 1500),
    steps=st.lists(st.lists(st.tuples(st.integers(0, 7), st.integers(1, 500)), max_size=6), max_size=25),
)
def test_allocated_pages_are_enough_within_the_limits(limits, capacity, steps):
    """Whatever fits capacity_tokens, max_requests and max_chunk finds its pages."""
    requests, chunk, rollback = limits
    cache = PagedCache.allocate(
        AttentionConfig.preset("tiny"),
        [0, 1, 2],
        capacity,
        "meta",
        max_requests=requests,
        max_chunk=chunk,
        max_rollback=rollback,
    )
    for step in steps:
        new = {}
        for request, n in step:
            room = min(chunk, capacity - cache.tokens) - sum(new.values())
            held = {*cache.requests, *new, request}
            if room > 0 and request not in new and len(held) <= requests:
                new[request] = min(n, room)
        cache.plan(new)
        if step and step[0][0] in cache.requests and step[0][1] % 5 == 0:
            request = step[0][0]
            cache.truncate(request, cache.min_length(request) if cache.length(request) else 0)
        elif step and step[0][1] % 7 == 0 and cache.requests:
            cache.free(cache.requests[0])
    cache.check_invariants()


def test_the_worst_alignment_of_all_requests_at_once():
    """Sixteen requests whose kept rows begin on the last row of a page: four window pages each, not three."""
    config = AttentionConfig.preset("tiny")
    cache = PagedCache.allocate(config, [0, 1, 2], 16 * 300, "meta", max_requests=16, max_chunk=16)
    for _ in range(12):
        for request in range(16):
            cache.plan({request: 16})
    for request in range(16):
        cache.plan({request: 63 + 136 - 192})
    cache.plan(dict.fromkeys(range(16), 1))
    held = [cache.pages["swa"] - cache.free_pages["swa"], cache.pages["swa"]]
    assert held == [16 * 4, 65]
    cache.check_invariants()
