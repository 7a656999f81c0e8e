"""Index scores against float64, and what lies behind the context."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from index_world import LAYOUTS, IndexWorld

from dsv4core.errors import OpArgumentError
from dsv4core.ops import OPS
from dsv4core.samples import sample


@pytest.mark.parametrize("place", [{}, {"lead": 37, "gap": 91}])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bound(ops, rng, layout: str, place: dict[str, int]) -> None:
    world = IndexWorld(rng, layout, lens=[0, 1, 63, 64, 65, 150, 7, 2], **place)
    for max_len in (150, 160):
        got = world.logits(ops, max_len)
        exact, bound = world.exact(max_len)
        assert got.dtype == torch.float32 and got.shape == (8, max_len)
        hidden = np.isneginf(exact)
        assert np.isneginf(got.numpy()[hidden]).all() and np.isfinite(got.numpy()[~hidden]).all()
        assert (np.abs(got.numpy()[~hidden] - exact[~hidden]) <= bound[~hidden]).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_alone_and_in_a_batch(ops, rng, layout: str) -> None:
    world = IndexWorld(rng, layout, lens=[150, 1, 64, 33, 150, 149, 120, 5, 99], heads=7)
    whole = world.logits(ops, 150)
    for t in range(9):
        assert torch.equal(world.only(t).logits(ops, 150)[0], whole[t])
    shorter = world.logits(ops, 77)
    assert torch.equal(shorter, whole[:, :77])


def test_negative_scores_stay_above_what_is_hidden(ops, rng) -> None:
    world = IndexWorld(rng, "index_fp8", lens=[40])
    world.weights = -world.weights.abs()
    got = world.logits(ops, 64)[0]
    assert (got[:40] < 0).any() and got[:40].isfinite().all() and got[40:].isneginf().all()


def test_invisible_entries_may_be_garbage(ops, rng) -> None:
    world = IndexWorld(rng, "index_fp8", lens=[3, 60, 10])
    before = world.logits(ops, 64)
    for t, n in enumerate(world.lens):
        page = world.pages.tensor[int(world.table[t, 0])]
        page[n * 128 : 8192] = 0x7F
        page[8192 + n * 4 : 8448] = 0xFF
    world.table = world.table.clone()
    world.table[:, 1:] = -1  # nothing behind the first page is visible
    assert torch.equal(world.logits(ops, 64), before)


def test_no_tokens_and_no_visible_entry(ops, rng) -> None:
    world = IndexWorld(rng, "index_mxfp4", lens=[0, 0])
    world.table = torch.full_like(world.table, -1)
    assert world.logits(ops, 5).isneginf().all()
    assert world.logits(ops, 0).shape == (2, 0)
    world.requests, world.lens = world.requests[:0], []
    world.q, world.scales, world.weights = world.q[:0], world.scales[:0], world.weights[:0]
    assert world.logits(ops, 5).shape == (0, 5)


def test_refusals(ops, rng, monkeypatch) -> None:
    world = IndexWorld(rng, "index_fp8", lens=[3, 60])
    for change, argument in [
        ({"rotate": "hadamard"}, "rotate"), ({"layout": "index_mxfp4"}, "q"),
        ({"layout": "bf16_row"}, "layout"),
        ({"requests": [0, 99]}, "token_to_req"), ({"lens": [3, 10**6]}, "context_lens"),
        ({"lens": [-1, 3]}, "context_lens"),
    ]:  # fmt: skip
        with pytest.raises(OpArgumentError) as caught:
            world.logits(ops, 64, **change)
        assert caught.value.argument == argument, change
    rotated = IndexWorld(rng, "index_mxfp4_hadamard", lens=[3])
    with pytest.raises(OpArgumentError, match="rotated together"):
        rotated.logits(ops, 64, rotate="none")
    world.table = torch.full_like(world.table, -1)
    with pytest.raises(OpArgumentError, match="block_table"):
        world.logits(ops, 64)


@pytest.mark.parametrize("op", ["indexer_logits", "sparse_indexer"])
def test_checked_mode_names_an_entry_without_a_page(op: str) -> None:
    """In the contract, so that every backend's kernel and library is spared the question."""
    arguments = sample(op)
    request, rows = int(arguments["token_to_req"][0]), arguments["rows"]
    arguments["block_table"] = arguments["block_table"].repeat(1, 4)
    arguments |= {"max_len": 2 * rows} if "max_len" in arguments else {}
    arguments["context_lens"] = torch.full_like(arguments["context_lens"], rows + 1)
    OPS[op].contract.check(arguments, "1")
    arguments["block_table"][request, 2:] = -1  # nobody sees these
    OPS[op].contract.check(arguments, "1")
    arguments["block_table"][request, 1] = -1
    with pytest.raises(OpArgumentError, match=f"entry {rows} of request {request}"):
        OPS[op].contract.check(arguments, "1")
    OPS[op].contract.check(arguments, "0")
