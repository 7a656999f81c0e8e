"""Slots of closing tokens, against a loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsv4core.errors import OpArgumentError


def naive(positions, slots, requests, table, ratio: int, rows: int) -> list[int]:
    out = []
    for t, p in enumerate(positions):
        own = slots[t] if t < len(slots) else -1
        if own < 0 or (p + 1) % ratio:
            out.append(-1)
            continue
        entry = p // ratio
        column = entry // rows
        page = int(table[requests[t], column]) if column < table.shape[1] else -1
        out.append(page * rows + entry % rows if page >= 0 else -1)
    return out


def call(ops, positions, slots, requests, table, ratio: int, rows: int) -> torch.Tensor:
    return ops.compressed_slot_mapping(
        torch.tensor(positions, dtype=torch.int64), torch.tensor(slots, dtype=torch.int64),
        torch.tensor(requests, dtype=torch.int32), table, ratio=ratio, rows=rows,
    )  # fmt: skip


@pytest.mark.parametrize(("ratio", "rows", "top"), [(4, 64, 1000), (128, 2, 1500), (4, 1, 60)])
def test_against_a_loop(ops, rng, ratio: int, rows: int, top: int) -> None:
    positions = np.concatenate((np.arange(2 * ratio), rng.integers(0, top, 200) // ratio * ratio + ratio - 1))
    slots = np.where(rng.random(len(positions)) < 0.2, rng.integers(-(2**40), 0, len(positions)), 7)[:-5]
    requests = rng.integers(0, 5, len(positions))
    wide = torch.from_numpy(rng.integers(-1, 2**26, (14, 5)).astype(np.int32))
    for table in (wide.t(), wide.t().contiguous()[:, 1:9], wide.t()[:, ::2]):
        got = call(ops, positions.tolist(), slots.tolist(), requests.tolist(), table, ratio, rows)
        assert got.dtype == torch.int64
        assert got.tolist() == naive(positions, slots, requests, table, ratio, rows)


def test_slots_pass_32_bits(ops) -> None:
    table = torch.tensor([[2**31 - 1]], dtype=torch.int32)
    assert call(ops, [7], [0], [0], table, 4, 64).tolist() == [(2**31 - 1) * 64 + 1]


def test_edges(ops) -> None:
    table = torch.tensor([[4, -1]], dtype=torch.int32)
    assert call(ops, [0, 1, 2], [0, 1, 2], [0, 0, 0], table, 4, 64).tolist() == [-1] * 3
    assert call(ops, [3, 255, 259, 100003], [0] * 4, [0] * 4, table, 4, 64).tolist() == [256, 319, -1, -1]
    assert call(ops, [], [], [], table, 4, 64).shape == (0,)
    assert call(ops, [3, 7], [], [0, 0], table, 4, 64).tolist() == [-1, -1]
    with pytest.raises(OpArgumentError, match="token_to_req"):
        call(ops, [3], [0], [1], table, 4, 64)
    with pytest.raises(OpArgumentError, match="slot_mapping"):
        call(ops, [3], [0, 1], [0], table, 4, 64)
