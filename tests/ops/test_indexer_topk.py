"""The chosen list: ascending, ties to the lower index, -1 behind; against Python's sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsv4core.errors import OpArgumentError


def naive(row: np.ndarray, n: int, k: int) -> list[int]:
    best = sorted(range(min(n, len(row))), key=lambda j: (-float(row[j]), j))[:k]
    return sorted(best) + [-1] * (k - len(best))


def call(ops, logits: np.ndarray, lens: list[int], k: int) -> torch.Tensor:
    got = ops.indexer_topk(torch.from_numpy(logits), torch.tensor(lens, dtype=torch.int32), k=k)
    assert got.dtype == torch.int32 and got.shape == (len(lens), k)
    return got


def check(ops, logits: np.ndarray, lens: list[int], k: int) -> None:
    expected = [naive(logits[t], n, k) for t, n in enumerate(lens)]
    assert call(ops, logits, lens, k).tolist() == expected


@pytest.mark.parametrize("k", [1, 4, 63, 64, 65, 200, 512])
def test_against_a_sort(ops, rng, k: int) -> None:
    lens = [0, 1, k - 1 if k < 130 else 3, min(k, 130), 130, 129, 64]
    plain = rng.standard_normal((7, 130)).astype(np.float32)
    check(ops, plain, lens, k)
    check(ops, np.round(plain * 2) / 2, lens, k)  # many ties
    check(ops, -np.abs(plain), lens, k)


def test_zeros_of_both_signs_tie(ops, rng) -> None:
    row = np.where(rng.random((5, 40)) < 0.5, np.float32(-0.0), np.float32(0.0))
    row[0], row[1, ::3] = -0.0, -1.0
    row[2, ::7] = np.float32(1e-45)
    check(ops, row, [40] * 5, 9)
    assert call(ops, row, [40] * 5, 9)[0].tolist() == list(range(9))


def test_all_equal_and_infinite(ops) -> None:
    for value in (0.0, -3.5, 3e38, -3e38):
        row = np.full((1, 100), value, np.float32)
        assert call(ops, row, [77], 12)[0].tolist() == list(range(12))
    row = np.full((1, 20), -np.inf, np.float32)  # a visible score may underflow to -inf: still a candidate
    row[0, 7], row[0, 3] = 1.0, np.inf
    check(ops, row, [20], 4)
    check(ops, row, [5], 8)


def test_what_lies_behind_the_context_is_garbage(ops, rng) -> None:
    row = rng.standard_normal((3, 60)).astype(np.float32)
    clean = call(ops, row, [10, 0, 59], 8)
    row[0, 10:], row[1], row[2, 59] = np.nan, np.inf, np.nan
    assert torch.equal(call(ops, row, [10, 0, 59], 8), clean)


def test_k_beyond_everything_and_empty(ops, rng) -> None:
    row = rng.standard_normal((2, 6)).astype(np.float32)
    assert call(ops, row, [6, 4], 10).tolist() == [[0, 1, 2, 3, 4, 5, *[-1] * 4], [0, 1, 2, 3, *[-1] * 6]]
    assert call(ops, row[:0], [], 4).shape == (0, 4)
    assert (call(ops, row[:, :0], [0, 0], 4) == -1).all()
    wide = torch.from_numpy(rng.standard_normal((4, 50)).astype(np.float32))
    lens = torch.tensor([[20, 0], [9, 0], [20, 0], [3, 0]], dtype=torch.int32)[:, 0]
    view = wide[:, 7:27]
    assert torch.equal(ops.indexer_topk(view, lens, k=5), ops.indexer_topk(view.clone(), lens.clone(), k=5))


def test_visible_nan_is_a_callers_error(ops, monkeypatch) -> None:
    row = np.ones((2, 9), np.float32)
    row[1, 4], row[0, 8] = np.nan, np.nan
    with pytest.raises(OpArgumentError, match="nan at \\[1, 4\\]") as caught:
        call(ops, row, [8, 9], 3)
    assert caught.value.argument == "logits"
    assert call(ops, row, [8, 4], 3).tolist() == [[0, 1, 2]] * 2  # behind the context it is garbage like any
    monkeypatch.setenv("DSV4CORE_CHECK", "0")
    assert call(ops, row, [8, 9], 8)[1].tolist() == [0, 1, 2, 3, 5, 6, 7, 8]


def test_refusals(ops) -> None:
    for lens, k, argument in [([7], 2, "context_lens"), ([-1], 2, "context_lens"), ([6], 0, "k")]:
        with pytest.raises(OpArgumentError) as caught:
            call(ops, np.zeros((1, 6), np.float32), lens, k)
        assert caught.value.argument == argument
