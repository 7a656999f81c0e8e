"""Entries to slots: stable compaction and what happens to entries without a page."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsv4core.errors import OpArgumentError


def naive(topk, requests, table, valid, rows: int) -> tuple[list[list[int]], list[int]]:
    slots, lens = [], []
    for t, listed in enumerate(topk):
        row = []
        for i in listed:
            page = table[requests[t], i // rows] if valid[t] and 0 <= i < table.shape[1] * rows else -1
            if page >= 0:
                row.append(int(page) * rows + int(i) % rows)
        lens.append(len(row))
        slots.append(row + [-1] * (len(listed) - len(row)))
    return slots, lens


def call(ops, topk, requests, table, valid, rows: int = 64):
    slots, lens = ops.compute_global_topk_indices_and_lens(
        topk,
        torch.tensor(requests, dtype=torch.int32),
        table,
        torch.tensor(valid, dtype=torch.bool),
        rows=rows,
    )
    assert slots.dtype == lens.dtype == torch.int32 and slots.shape == topk.shape
    return slots.tolist(), lens.tolist()


def i32(x) -> torch.Tensor:
    return torch.from_numpy(np.asarray(x, np.int32).copy())


@pytest.mark.parametrize("rows", [64, 2, 1])
def test_against_a_loop(ops, rng, rows: int) -> None:
    topk = rng.integers(-3, 6 * rows, (30, 17))
    requests, valid = rng.integers(0, 4, 30).tolist(), (rng.random(30) < 0.8).tolist()
    table = i32(rng.permutation(10**6)[:40].reshape(10, 4))
    for view in (table.t()[:, 1:7], table.t()[:, 3:9].clone(), table.t()[:, ::2][:, :5]):
        width = view.shape[1] * rows
        listed = np.where(topk < width, topk, -1)
        expected = naive(listed, requests, view.numpy(), valid, rows)
        assert call(ops, i32(listed), requests, view, valid, rows) == expected
        assert call(ops, i32(listed.T).t(), requests, view, valid, rows) == expected


def test_order_duplicates_and_leading_holes(ops) -> None:
    table = i32([[7, 3], [0, 1]])
    topk = i32([[-1, 64, -5, 2, 2, -1, 0], [-1] * 7])
    assert call(ops, topk, [0, 1], table, [True, True]) == (
        [[192, 450, 450, 448, -1, -1, -1], [-1] * 7],
        [4, 0],
    )


def test_padding_rows_hold_nothing(ops) -> None:
    topk = i32([[0, 1], [10**9, 2], [5, 5]])
    got = call(ops, topk, [0, 0, 0], i32([[4]]), [True, False, False])
    assert got == ([[256, 257], [-1, -1], [-1, -1]], [2, 0, 0])


def test_entries_without_a_page(ops, monkeypatch) -> None:
    table = i32([[4, -1], [-7, 6]])
    cases = [([[1, 64, 3]], [0]), ([[1, 128, 3]], [0]), ([[70, 5, 71]], [1]), ([[2**31 - 1, 2, 3]], [0])]
    for listed, request in cases:
        with pytest.raises(OpArgumentError) as caught:
            call(ops, i32(listed), request, table, [True])
        assert caught.value.argument == "topk"
    with pytest.raises(OpArgumentError, match="token_to_req"):
        call(ops, i32([[1]]), [2], table, [True])
    monkeypatch.setenv("DSV4CORE_CHECK", "0")
    for listed, request in cases:
        assert call(ops, i32(listed), request, table, [True]) == naive(
            np.array(listed), request, table.numpy(), [True], 64
        )


def test_no_tokens_no_columns(ops) -> None:
    table = i32([[4]])
    assert call(ops, torch.zeros(0, 5, dtype=torch.int32), [], table, []) == ([], [])
    assert call(ops, torch.zeros(2, 0, dtype=torch.int32), [0, 0], table, [True, True]) == ([[], []], [0, 0])


def test_a_slot_that_is_no_i32_is_no_page(ops, monkeypatch) -> None:
    """Page 2^25 of 64 rows starts at slot 2^31, in 32 bits that of page 0, which is somebody else's."""
    table = i32([[3, 2**25], [2**25 - 1, 2**31 - 1]])
    topk = i32([[0, 64, 127, 5], [63, 64, 0, 1]])
    with pytest.raises(OpArgumentError, match="topk"):
        call(ops, topk, [0, 1], table, [True, True])
    monkeypatch.setenv("DSV4CORE_CHECK", "0")
    slots, lens = call(ops, topk, [0, 1], table, [True, True])
    assert slots == [[192, 197, -1, -1], [2**31 - 1, 2**31 - 64, 2**31 - 63, -1]] and lens == [2, 3]
