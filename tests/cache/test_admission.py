"""Admission says what `plan` would do; sizes of a cache and of what is kept against the published model."""

from __future__ import annotations

import pytest
from request_world import TINY, books, few_pages, specs_of

from dsv4core.cache import PagedCache, page_counts
from dsv4core.config import AttentionConfig
from dsv4core.errors import CacheError, OutOfPagesError

GIB = 2**30
MIB = 2**20


def planned(cache, new):
    """Whether `plan` succeeds, and with what error."""
    try:
        cache.plan(new)
    except CacheError as error:
        return error
    return None


def test_it_is_exact_page_by_page():
    """The largest step that is admitted is planned, one token more is not, for every group that is short."""
    plenty = {s.group: 400 for s in specs_of().values()}
    for short, pages in (
        ("swa", 3),
        ("c4", 2),
        ("indexer", 1),
        ("c128", 1),
        ("state_c4", 30),
        ("state_c128", 20),
    ):
        cache = few_pages(plenty | {short: pages}, config=TINY)
        cache.plan({"a": 20})
        fits = [n for n in range(1, 600) if cache.can_admit({"a": n})]
        most = len(fits)
        assert fits == list(range(1, most + 1)) and 0 < most < 599
        refused = cache.can_admit({"a": most + 1})
        assert (refused.ok, refused.later) == (False, True) and f"group '{short}'" in refused.reason
        assert refused.needed[short] > refused.available[short]
        before = books(cache)
        error = planned(cache, {"a": most + 1})
        assert isinstance(error, OutOfPagesError) and str(error) == refused.reason
        assert books(cache) == before
        assert planned(cache, {"a": most}) is None


def test_what_a_step_draws():
    cache = PagedCache.allocate(TINY, [0, 1, 2], 2000, "meta", max_requests=3)
    cache.plan({"a": 600})
    answer = cache.can_admit({"a": 1, "b": 130})
    free = cache.free_pages
    cache.plan({"a": 1, "b": 130})
    assert answer and answer.reason == ""
    for name, left in cache.free_pages.items():
        assert left == answer.available[name] - answer.needed[name]
        assert answer.available[name] >= free[name]
    assert answer.needed["swa"] == 3 and answer.needed["c4"] == 1 and answer.available["swa"] > free["swa"]


def test_limits():
    cache = PagedCache.allocate(TINY, [0], 100, "meta", max_requests=1, max_chunk=50)
    cache.plan({"a": 40})
    never = [{"a": 51}, {"a": 0}, {"a": 1.5}, {"a": 2**21}, {"a": "x"}]
    later = [{"b": 1}, {"a": 30, "b": 1}]
    for new in never + later:
        answer, before = cache.can_admit(new), books(cache)
        error = planned(cache, new)
        assert error is not None and books(cache) == before
        assert (answer.ok, answer.reason) == (False, str(error))
        assert answer.later == isinstance(error, OutOfPagesError) == (new in later)
    assert cache.can_admit({}) and cache.can_admit({"a": 50})
    cache.plan({"a": 50})
    assert cache.can_admit({"a": 10}) and not cache.can_admit({"a": 11}) and cache.can_admit({"a": 11}).later
    assert not cache.can_admit("a")


def test_a_copy_of_a_shared_page_is_counted():
    """Two forks of a full page and no free page: the writer cannot have its copy, until somebody lets go."""
    pages = {
        "swa": 8,
        "c4": 3,
        "indexer": 3,
        "c128": 3,
        "state_c4": 400,
        "state_indexer": 400,
        "state_c128": 200,
    }
    cache = few_pages(pages)
    cache.plan({"a": 511})
    cache.plan({"a": 1})
    cache.fork("a", "b")
    cache.truncate("b", 504)
    assert cache.free_pages["c4"] == 1 and cache.can_admit({"b": 8})
    cache.plan({"c": 4})
    answer = cache.can_admit({"b": 8})
    assert not answer and (answer.needed["c4"], answer.available["c4"]) == (1, 0)
    before = books(cache)
    with pytest.raises(OutOfPagesError, match="group 'c4' needs 1 pages"):
        cache.plan({"b": 8})
    assert books(cache) == before
    assert cache.can_admit({"b": 3}), "no entry is completed, so no entry page is written"
    cache.free("a")
    cache.plan({"b": 8})
    cache.check_invariants()


@pytest.mark.parametrize(
    ("preset", "layers", "payload", "grown"),
    [("v4-flash", 43, "3.43", "3.50"), ("v4-pro", 61, "4.91", "5.02")],
)
def test_allocation_at_a_million_tokens(preset, layers, payload, grown):
    """3.43 and 4.91 GiB of rows; pages and the part that does not grow come on top, as stated."""
    config = AttentionConfig.preset(preset, index_layout="index_mxfp4")
    cache = PagedCache.allocate(config, range(layers), 2**20, "meta", max_requests=1, max_chunk=2048)
    ratios = config.compress_ratios[:layers]
    csa, hca = ratios.count(4), ratios.count(128)
    rows = 2**20 // 4 * csa * (584 + 68) + 2**20 // 128 * hca * 584
    assert rows == 2**20 * sum(cache.bytes_per_token(payload=True).values())
    assert f"{rows / GIB:.2f}" == payload

    # Whole pages: 37,440 B for 64 rows of 584, 4,608 B for 64 keys of 68, 1,728 B for 2 rows of 584.
    counts = page_counts(config, range(layers), 2**20, max_requests=1, max_chunk=2048)
    assert counts == cache.pages and [counts[g] for g in ("c4", "indexer", "c128")] == [4096] * 3
    growing = 4096 * (csa * (37_440 + 4_608) + hca * 1_728)
    assert growing == 2**20 * sum(cache.bytes_per_token().values())
    assert growing - rows == 4096 * (csa * (64 + 256) + hca * 560)
    assert f"{growing / GIB:.2f}" == grown

    # The fixed part: what one request of 2,048 tokens a step holds of the windows and states, in pages.
    span = 128 + 8 + 2048
    pages = {"swa": (span + 62) // 64 + 1, "state_c4": (span + 2) // 4 + 1, "state_c128": (span + 6) // 8 + 1}
    assert {name: counts[name] for name in pages} == pages and counts["state_indexer"] == pages["state_c4"]
    fixed = pages["swa"] * layers * 37_440
    fixed += pages["state_c4"] * csa * (32_832 + 8_640) + pages["state_c128"] * hca * 32_832
    assert cache.nbytes == growing + fixed


def test_what_a_resume_costs_at_a_million_tokens():
    """Window and states of the last 128 tokens: a prefix is kept for a few percent of its entries."""
    config = AttentionConfig.preset("v4-flash", index_layout="index_mxfp4")
    cache = PagedCache.allocate(config, range(43), 2**20, "meta", max_requests=2)
    kept = cache.resume_bytes(2**20)
    entries = sum(kept[g] for g in ("c4", "indexer", "c128"))
    rest = sum(kept.values()) - entries
    assert entries == 2**20 * sum(cache.bytes_per_token().values())
    assert rest == 43 * 2 * 37_440 + 21 * 32 * (32_832 + 8_640) + 20 * 16 * 32_832
    assert f"{rest / MIB:.1f}" == "39.7"
    assert cache.resume_bytes(0) == dict.fromkeys(kept, 0)
    with pytest.raises(CacheError, match="whole number"):
        cache.resume_bytes(-1)
