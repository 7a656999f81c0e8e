"""The list of a prefill query: entries, then the window, in rows of the workspace."""

from __future__ import annotations

import pytest
import torch

from dsv4core.errors import OpArgumentError


def naive(topk, starts, seq_lens, gather_lens, *, window: int, ratio: int, top_k: int, M: int, N: int):
    width = (top_k + window + 127) // 128 * 128
    rows, lens = [], []
    for b in range(len(seq_lens)):
        count = starts[b + 1] - starts[b]
        for i in range(count):
            q = starts[b] - starts[0] + i
            p = seq_lens[b] - count + i
            n = min((p + 1) // ratio, top_k) if top_k else 0
            row = [e + M * b if e >= 0 else -1 for e in topk[q][:n]]
            for position in range(max(p - window + 1, 0), p + 1):
                row.append(M * b + N + position - (seq_lens[b] - gather_lens[b]))
            lens.append(len(row))
            rows.append(row + [-1] * (width - len(row)))
    return rows, lens


def call(ops, topk, starts, seq_lens, gather_lens, **keywords):
    def i32(x):
        return torch.tensor(x, dtype=torch.int32)

    indices, lens = ops.combine_topk_swa_indices(
        topk, i32(starts), i32(seq_lens), i32(gather_lens), **keywords
    )
    assert indices.dtype == lens.dtype == torch.int32
    return indices.tolist(), lens.tolist()


@pytest.mark.parametrize("first", [0, 11])
@pytest.mark.parametrize(
    ("ratio", "top_k", "window"), [(4, 9, 128), (128, 64, 128), (4, 130, 16), (0, 0, 128), (1, 0, 5)]
)
def test_against_a_loop(ops, rng, first: int, ratio: int, top_k: int, window: int) -> None:
    queries, prefixes = [1, 5, 3, 140, 1], [0, 0, 200, 1, 511]
    starts = [first + sum(queries[:b]) for b in range(6)]
    seq_lens = [q + p for q, p in zip(queries, prefixes, strict=True)]
    gather_lens = [q + min(p, window - 1) for q, p in zip(queries, prefixes, strict=True)]
    topk = torch.from_numpy(rng.integers(0, 100, (sum(queries), max(top_k, 3) + 4))).to(torch.int32)
    keywords = {"window": window, "ratio": ratio, "top_k": top_k, "M": 1000, "N": 170}
    expected = naive(topk.tolist(), starts, seq_lens, gather_lens, **keywords)
    assert call(ops, topk, starts, seq_lens, gather_lens, **keywords) == expected
    wide = torch.full((topk.shape[0], topk.shape[1] + 9), -5, dtype=torch.int32)
    wide[:, 4:-5] = topk
    assert call(ops, wide[:, 4:-5], starts, seq_lens, gather_lens, **keywords) == expected
    # Every window row of request b lies in its rows M*b + N .. M*b + N + gather_len - 1.
    for b in range(5):
        for q in range(starts[b] - first, starts[b + 1] - first):
            row, n = expected[0][q], expected[1][q]
            behind = [i - 1000 * b - 170 for i in row[:n][-min(window, seq_lens[b]) :]]
            assert behind[-1] < gather_lens[b] and min(behind[-1:]) >= 0


def test_positions_before_the_first_boundary(ops) -> None:
    topk = torch.full((5, 2), 17, dtype=torch.int32)
    rows, lens = call(ops, topk, [0, 5], [5], [5], window=3, ratio=4, top_k=2, M=50, N=20)
    assert lens == [1, 2, 3, 4, 4]
    assert [row[:n] for row, n in zip(rows, lens, strict=True)] == [
        [20], [20, 21], [20, 21, 22], [17, 21, 22, 23], [17, 22, 23, 24],
    ]  # fmt: skip


def test_holes_in_the_list_stay_holes(ops) -> None:
    topk = torch.tensor([[5, -1]], dtype=torch.int32)
    rows, lens = call(ops, topk, [3, 4], [8], [8], window=2, ratio=4, top_k=2, M=50, N=20)
    assert rows[0][:4] == [5, -1, 26, 27] and lens == [4]


@pytest.mark.parametrize("queries", [0, 2])
def test_rows_behind_the_last_query_are_padding(ops, queries: int) -> None:
    topk = torch.zeros(5, 2, dtype=torch.int32)
    rows, lens = call(ops, topk, [3, 3 + queries], [9], [9], window=2, ratio=4, top_k=2, M=50, N=20)
    assert lens == [4] * queries + [0] * (5 - queries)
    assert rows[queries:] == [[-1] * 128] * (5 - queries)
    assert all(row[:2] == [0, 0] for row in rows[:queries])


def test_no_queries_and_refusals(ops) -> None:
    empty = torch.zeros(0, 4, dtype=torch.int32)
    keywords = {"window": 128, "ratio": 4, "top_k": 4, "M": 500, "N": 20}
    assert call(ops, empty, [7], [], [], **keywords) == ([], [])
    for change, starts in [
        ({"window": 0}, [0, 0]),
        ({"top_k": 5}, [0, 0]),
        ({"ratio": 0}, [0, 0]),
        ({}, [0, 0, 0]),
    ]:
        with pytest.raises(OpArgumentError):
            call(ops, empty, starts, [9], [9], **{**keywords, **change})
