"""States of every token: one addition, exact, nothing else touched."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsv4core.errors import OpArgumentError


def call(ops, kv, score, ape, positions, state, slots, ratio: int) -> None:
    slot_mapping = torch.tensor(slots, dtype=torch.int64)
    ops.save_partial_states(kv, score, ape, positions, state, slot_mapping, ratio=ratio)


def world(rng, tokens: int, width: int, ratio: int, rows: int, gap: int):
    joined = torch.from_numpy(rng.standard_normal((tokens, 2 * width)).astype(np.float32))
    ape = torch.from_numpy(rng.standard_normal((ratio, width)).astype(np.float32))
    store = torch.full((6 * (rows * 2 * width + gap) + 5,), -77.25)
    state = store.as_strided((6, rows, 2 * width), (rows * 2 * width + gap, 2 * width, 1), 5)
    return joined[:, :width], joined[:, width:], ape, store, state


@pytest.mark.parametrize(("width", "ratio", "rows"), [(1024, 4, 4), (256, 4, 4), (512, 128, 8), (24, 4, 3)])
@pytest.mark.parametrize("gap", [0, 16])
def test_bits(ops, rng, width: int, ratio: int, rows: int, gap: int) -> None:
    kv, score, ape, store, state = world(rng, 14, width, ratio, rows, gap)
    positions = torch.from_numpy(rng.integers(0, 1000, 14))
    slots = [3, -1, 17, 0, -9, 5, -(2**63), 4, 1, 16]  # four rows of padding behind
    expected = store.numpy().copy()
    for t, slot in enumerate(slots):
        if slot >= 0:
            at = 5 + slot // rows * (rows * 2 * width + gap) + slot % rows * 2 * width
            expected[at : at + width] = kv[t].numpy()
            expected[at + width : at + 2 * width] = score[t].numpy() + ape.numpy()[int(positions[t]) % ratio]
    call(ops, kv, score, ape, positions, state, slots, ratio)
    assert (store.numpy().view(np.uint32) == expected.view(np.uint32)).all()


def test_an_engines_page_of_32832_bytes(ops, rng) -> None:
    kv, score, ape, _, _ = world(rng, 3, 1024, 4, 4, 0)
    raw = torch.full((4, 32832), 0xA5, dtype=torch.uint8)
    state = raw.view(torch.float32).as_strided((4, 4, 2048), (8208, 2048, 1))
    call(ops, kv, score, ape, torch.tensor([6, 7, 8]), state, [13, 2, -1], 4)
    assert torch.equal(state[3, 1, :1024], kv[0]) and torch.equal(state[0, 2, 1024:], score[1] + ape[3])
    assert (raw[:, 32768:] == 0xA5).all() and (raw[1:3] == 0xA5).all()


def test_garbage_in_other_rows_is_legal(ops, rng) -> None:
    kv, score, ape, store, state = world(rng, 2, 24, 4, 4, 0)
    store.fill_(torch.nan)
    call(ops, kv, score, ape, torch.tensor([0, 1]), state, [0, 1], 4)
    assert state[0, :2].isfinite().all() and state[0, 2:].isnan().all()


def test_no_tokens_and_refusals(ops, rng) -> None:
    kv, score, ape, store, state = world(rng, 3, 24, 4, 4, 0)
    before = store.clone()
    call(ops, kv[:0], score[:0], ape, torch.arange(0), state, [], 4)
    call(ops, kv, score, ape, torch.arange(3), state, [], 4)
    for argument, positions, slots, ratio in [
        ("slot_mapping", [0, 1, 2], [0, 24], 4), ("slot_mapping", [0, 1, 2], [0, 1, 2, 3], 4),
        ("positions", [0, -1, 2], [0, 1], 4), ("ape", [0, 1, 2], [0], 128),
    ]:  # fmt: skip
        with pytest.raises(OpArgumentError) as caught:
            call(ops, kv, score, ape, torch.tensor(positions), state, slots, ratio)
        assert caught.value.argument == argument
    assert torch.equal(store, before)
