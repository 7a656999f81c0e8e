"""A plan against the same figures written down token by token."""

from __future__ import annotations

import random
from dataclasses import fields

import pytest
import torch
from cache_model import GROUPS_OF, ROWS, assert_plan, plain_plan
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv4core.config import AttentionConfig
from dsv4core.plan import GROUPS, BatchPlan, Limits, prefill_workspace_rows

TINY = AttentionConfig.preset("tiny")
ALL = list(ROWS)


def engine_tables(lengths, groups, seed=0, rows=ROWS, extra=0):
    """Shuffled pages, as an engine would have them, with -1 behind a request's last page."""
    rng = random.Random(seed)
    tables = {}
    for name in groups:
        per_row = {"c4": 4, "indexer": 4, "c128": 128}.get(name, 1)
        counts = [-(-(length // per_row) // rows[name]) for length in lengths]
        ids = list(range(sum(counts) + 3))
        rng.shuffle(ids)
        width = max([1, *counts]) + extra
        table = []
        for count in counts:
            table.append([ids.pop() for _ in range(count)] + [-1] * (width - count))
        tables[name] = table
    return tables


def build(config, queries, lengths, tables, **more):
    as_tensors = {name: torch.tensor(t or [[-1]], dtype=torch.int32) for name, t in tables.items()}
    return BatchPlan.build(config, query_lens=queries, seq_lens=lengths, tables=as_tensors, **more)


CASES = [
    ([1], [1]),
    ([5], [5]),
    ([1, 1, 1], [4, 128, 300]),
    ([5, 1, 300, 1], [5, 128, 300, 513]),
    ([200, 3, 2, 2, 130, 1, 9], [500, 3, 131, 259, 130, 777, 1025]),
    ([0, 1], [7, 9]),
]


@pytest.mark.parametrize("pad", [0, 3])
@pytest.mark.parametrize(("queries", "lengths"), CASES)
def test_fields_equal_the_plain_model(queries, lengths, pad):
    tables = engine_tables(lengths, ALL, extra=pad)
    pad_to = sum(queries) + pad if pad else None
    plan = build(TINY, queries, lengths, tables, pad_to=pad_to)
    assert_plan(plan, plain_plan(queries, lengths, tables, pad_to=pad_to))


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(0, 70), st.integers(0, 400)), min_size=0, max_size=6),
    threshold=st.integers(1, 6),
    chunk=st.integers(1, 4),
    pad=st.integers(0, 5),
    ratio=st.sampled_from([0, 4, 128]),
    seed=st.integers(0, 99),
)
def test_random_steps(steps, threshold, chunk, pad, ratio, seed):
    config = AttentionConfig.preset("tiny", decode_threshold=threshold, prefill_chunk_requests=chunk)
    queries = [n for n, _ in steps]
    lengths = [n + old for n, old in steps]
    tables = engine_tables(lengths, GROUPS_OF[ratio], seed)
    plan = build(config, queries, lengths, tables, pad_to=sum(queries) + pad)
    assert_plan(
        plan,
        plain_plan(queries, lengths, tables, threshold=threshold, chunk=chunk, pad_to=sum(queries) + pad),
    )


def test_types_and_shapes():
    plan = build(TINY, [3, 1], [3, 260], engine_tables([3, 260], ALL), pad_to=6)
    i32, i64 = torch.int32, torch.int64
    assert {t.dtype for t in plan.slots.values()} == {i64} and {t.dtype for t in plan.tables.values()} == {
        i32
    }
    for name, dtype in [
        ("permutation", i64),
        ("inverse", i64),
        ("positions", i64),
        ("token_to_req", i32),
        ("query_start_loc", i32),
        ("seq_lens", i32),
        ("is_valid", torch.bool),
        ("swa_slots", i32),
        ("swa_lens", i32),
        ("c128_slots", i32),
        ("c128_lens", i32),
    ]:
        assert getattr(plan, name).dtype == dtype, name
    assert plan.swa_slots.shape == (6, 128) and plan.c128_slots.shape == (1, 64)
    assert {t.dtype for t in plan.context_lens.values()} == {i32}
    chunk = plan.prefill_chunks[0]
    assert {chunk.gather_lens.dtype, chunk.seq_lens.dtype, chunk.entry_lens[4].dtype} == {i32}
    assert list(plan.slots) == ALL and dict(plan.rows) == ROWS


def test_rows_go_to_plan_order_and_back():
    plan = build(TINY, [4, 1, 2], [4, 9, 2], engine_tables([4, 9, 2], ["swa"]), pad_to=9)
    hidden = torch.tensor([10, 11, 12, 13, 20, 30, 31, -1, -1])
    inside = hidden[plan.permutation]
    assert inside.tolist() == [20, 10, 11, 12, 13, 30, 31, -1, -1]
    assert inside[plan.inverse].tolist() == hidden.tolist()


def test_pages_older_than_the_window_may_be_unmapped():
    """An engine has given back what no token of this step reads: the plan is the same."""
    queries, lengths = [1, 40], [1000, 700]
    full = engine_tables(lengths, ALL)
    swept = {name: [list(row) for row in table] for name, table in full.items()}
    for name in ("swa", "state_c4", "state_indexer", "state_c128"):
        for row, n, length in zip(swept[name], queries, lengths, strict=True):
            for page in range((length - n - 127) // ROWS[name]):
                row[page] = -1
    a, b = build(TINY, queries, lengths, full), build(TINY, queries, lengths, swept)
    for name in ALL:
        assert torch.equal(a.slots[name], b.slots[name])
    assert torch.equal(a.swa_slots, b.swa_slots) and bool(b.is_valid.all())


def test_a_token_without_a_window_page_is_like_padding():
    tables = engine_tables([8, 200], ALL)
    tables["swa"][0][0] = -1
    plan = build(TINY, [8, 1], [8, 200], tables)
    expected = plain_plan([8, 1], [8, 200], tables)
    assert expected["is_valid"] == [True] + [False] * 8
    assert expected["slots"]["c4"][1:] == [-1] * 8 and expected["context_lens"][4][1:] == [0] * 8
    assert_plan(plan, expected)


def test_other_rows_per_page():
    rows = {**ROWS, "swa": 32, "c4": 16, "c128": 1, "state_c128": 64}
    queries, lengths = [3, 1, 150], [300, 257, 150]
    tables = engine_tables(lengths, ALL, rows=rows)
    plan = build(
        TINY, queries, lengths, tables, rows={k: rows[k] for k in ("swa", "c4", "c128", "state_c128")}
    )
    assert_plan(plan, plain_plan(queries, lengths, tables, rows=rows))


def test_wide_index_lists_of_ratio_128():
    lengths = [128 * 65 + 5]
    tables = engine_tables(lengths, GROUPS_OF[128])
    plan = build(TINY, [1], lengths, tables)
    assert plan.c128_slots.shape == (1, 128)
    assert_plan(plan, plain_plan([1], lengths, tables))


def test_a_prefill_far_into_a_request_plans_no_list_as_long_as_the_request():
    """2,048 tokens behind a million: with a list of 8,192 entries for each it would be 67 MB a list."""
    tables = {}
    for name, group in GROUPS.items():
        pages = -(-(2**20) // group.tokens_per_page)
        tables[name] = torch.arange(pages, dtype=torch.int32)[None]
    plan = BatchPlan.build(TINY, query_lens=[2048], seq_lens=[2**20], tables=tables)
    found = [getattr(plan, field.name) for field in fields(plan)]
    found += [tensor for part in found if isinstance(part, dict) for tensor in part.values()]
    assert sum(t.nbytes for t in found if torch.is_tensor(t)) < 6 * 2**20
    assert plan.max_context_lens[128] == 8192 and int(plan.c128_lens[-1]) == 8192


@pytest.mark.parametrize("pad_to", [None, 0, 4])
def test_no_request_at_all(pad_to):
    """T = 0 is a legal step, and so is a step of padding only; tables keep one row that ops may look at."""
    for width in (0, 2):
        tables = {name: torch.zeros((0, width), dtype=torch.int32) for name in ALL}
        plan = BatchPlan.build(TINY, query_lens=[], seq_lens=[], tables=tables, pad_to=pad_to)
        total = pad_to or 0
        assert (plan.num_tokens, plan.num_decode_tokens, plan.num_padding) == (total, total, total)
        assert plan.swa_slots.shape == (total, 128) and not plan.is_valid.any()
        assert all(t.shape[0] == 1 and bool((t == -1).all()) for t in plan.tables.values())
        assert plan.query_start_loc.tolist() == [0] and plan.prefill_chunks == ()


def test_ordered_tables_are_kept_and_moved_ones_copied():
    table = torch.tensor([[0], [1]], dtype=torch.int32)
    same = BatchPlan.build(TINY, query_lens=[1, 3], seq_lens=[1, 3], tables={"swa": table})
    assert same.tables["swa"] is table
    moved = BatchPlan.build(TINY, query_lens=[3, 1], seq_lens=[3, 1], tables={"swa": table})
    assert moved.tables["swa"].tolist() == [[1], [0]] and table.tolist() == [[0], [1]]


def test_the_whole_plan_lies_on_the_device_asked_for():
    tables = {name: torch.tensor(t, dtype=torch.int32) for name, t in engine_tables([5, 3], ALL).items()}
    plan = BatchPlan.build(TINY, query_lens=[5, 1], seq_lens=[5, 3], tables=tables, device="meta")
    chunk = plan.prefill_chunks[0]
    found = [v for v in vars(plan).values() if isinstance(v, torch.Tensor)]
    found += [v for v in vars(chunk).values() if isinstance(v, torch.Tensor)]
    for several in (plan.tables, plan.slots, plan.context_lens, chunk.entry_lens):
        found += several.values()
    assert len(found) > 30 and {t.device.type for t in found} == {"meta"} == {plan.device.type}


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 500)), min_size=1, max_size=6),
    chunk=st.integers(1, 5),
)
def test_no_chunk_exceeds_the_workspace_of_its_limits(steps, chunk):
    config = AttentionConfig.preset("tiny", prefill_chunk_requests=chunk)
    queries = [n for n, _ in steps]
    lengths = [n + old for n, old in steps]
    plan = build(config, queries, lengths, engine_tables(lengths, ALL))
    limits = Limits(max_tokens=sum(queries), max_seq_len=max(lengths), max_requests=len(steps))
    for part in plan.prefill_chunks:
        for ratio, stride in part.M.items():
            assert part.num_requests * stride <= prefill_workspace_rows(config, ratio, limits)


def test_workspace_of_a_flash_prefill():
    flash = AttentionConfig.preset("v4-flash")
    limits = Limits(max_tokens=2048, max_seq_len=131072, max_requests=64)
    assert prefill_workspace_rows(flash, 0, limits) == 4 * 2175
    assert prefill_workspace_rows(flash, 4, limits) == 4 * (32768 + 2175)
    assert prefill_workspace_rows(flash, 128, limits) == 4 * (1024 + 2175)
    assert prefill_workspace_rows(flash, 128, Limits(max_tokens=64, max_seq_len=100, max_requests=1)) == 100


def test_a_page_too_far_for_32_bits_is_no_other_page():
    """Page 2^25 of 64 rows starts at slot 2^31, in 32 bits that of page 0: it is behind all pages instead."""
    tables = {"swa": [[5, 2**25, 6]], "c128": [[2**31 - 1]], "state_c128": [[0] * 22]}
    rows = {"swa": 64, "c128": 2, "state_c128": 8}
    plan = build(TINY, [1], [170], tables, rows=rows)
    first = 170 - 128
    starts = {0: 5 * 64, 2: 4 * 64}  # of what position 0 would be in
    expected = [2**31 - 1 if p // 64 == 1 else starts[p // 64] + p for p in range(first, 170)]
    assert plan.swa_slots.tolist() == [expected] and plan.swa_lens.tolist() == [128]
    assert plan.c128_slots is not None and plan.c128_slots[0, 0] == 2**31 - 1
