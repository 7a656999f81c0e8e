"""Edge cases 7-12: what lists of entries may hold, and what readers make of them."""

from __future__ import annotations

import pytest
import torch
from harness import ALL_CANDIDATES, decode, ops, pages, prefill, relative, rig, values

from dsv4core.errors import OpArgumentError
from dsv4core_conformance.reference.attention import attend

SINK = torch.tensor([0.5, -1.0, 2.0])
ROWS = 200


def queries(count: int = 1) -> torch.Tensor:
    return values(count, 3, 512, stream=41)


def keys() -> torch.Tensor:
    return values(ROWS, 512, stream=42)


def both(q: torch.Tensor, kv: torch.Tensor, indices: torch.Tensor, lens: torch.Tensor) -> list[torch.Tensor]:
    """Outputs of the two attention ops for the same lists."""
    return [decode(q, pages(kv), indices, lens, SINK)[0], prefill(q, kv, indices, lens, SINK)[0]]


def expected(q: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(
        attend(q.double().numpy(), rows.double().numpy(), SINK.double().numpy(), 512**-0.5)[0]
    )


@pytest.mark.parametrize("visible", [1, 3, 7, 8])
def test_07_fewer_candidates_than_top_k(visible: int) -> None:
    logits = values(1, 64, stream=43)
    logits[:, visible:] = torch.tensor([torch.inf, torch.nan]).repeat(32)[visible:]
    chosen = ops().indexer_topk(logits, torch.tensor([visible], dtype=torch.int32), k=8)
    assert chosen.tolist() == [[*range(visible), *[-1] * (8 - visible)]]


def test_07_the_layer_uses_every_candidate() -> None:
    layer = rig("csa")  # top-k 4: all of them up to token 18
    hidden = layer.hidden(19)
    trace = layer.trace(hidden)
    assert [len(choice) for choice in trace["selection"]] == [(p + 1) // 4 for p in range(19)]
    assert relative(layer.run(hidden), trace["out"]) < 2e-6


def test_08_no_candidate() -> None:
    assert (
        ops().indexer_topk(torch.zeros(2, 0), torch.zeros(2, dtype=torch.int32), k=4).tolist()
        == [[-1] * 4] * 2
    )
    garbage = torch.full((1, 16), torch.nan)
    assert ops().indexer_topk(garbage, torch.zeros(1, dtype=torch.int32), k=4).tolist() == [[-1] * 4]
    csa = rig("csa", index_topk=ALL_CANDIDATES)
    hidden = csa.hidden(3)
    trace = csa.trace(hidden)
    assert [len(choice) for choice in trace["selection"]] == [0, 0, 0]
    for chunks in ([3], [1, 1, 1]):
        assert relative(csa.run(hidden, chunks), trace["out"]) < 2e-6


def test_09_ties_at_the_boundary() -> None:
    logits = torch.tensor(
        [[1.0, -0.0, 0.0, 2.0, 0.0, -0.0, -3.0, 0.0], [0.5] * 8, [-1.0, -1.0, 3.0, -1.0, -1.0, 3.0, 3.0, 3.0]]
    )
    chosen = ops().indexer_topk(logits, torch.full((3,), 8, dtype=torch.int32), k=4)
    assert chosen.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [2, 5, 6, 7]]


def test_09_every_chosen_score_is_at_least_every_other() -> None:
    logits = (values(64, 300, stream=44) * 4).round() / 4  # many equal scores, both signs
    lens = torch.arange(64, dtype=torch.int32) * 4 + 40
    for row, length, chosen in zip(
        logits, lens.tolist(), ops().indexer_topk(logits, lens, k=32), strict=True
    ):
        others = torch.ones(300, dtype=torch.bool)
        others[chosen.long()] = False
        others[length:] = False
        assert chosen.tolist() == sorted(set(chosen.tolist()))
        assert chosen[0] >= 0 and chosen[-1] < length
        assert row[chosen.long()].min() >= row[others].max()
        # Among equal scores the lower index wins.
        edge = row[chosen.long()].min()
        ties = [i for i in range(length) if row[i] == edge]
        taken = [i for i in ties if not others[i]]
        assert taken == ties[: len(taken)]


def test_10_order_has_no_meaning() -> None:
    q, kv = queries(), keys()
    listed = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))[:77]
    lens = torch.tensor([77])
    for forward, other in zip(
        both(q, kv, listed[None], lens), both(q, kv, listed.flip(0)[None], lens), strict=True
    ):
        assert relative(forward, other) < 1e-6
        assert relative(forward[0], expected(q[0], kv[listed])) < 2e-6


def test_10_duplicates_count_twice() -> None:
    q, kv = queries(), keys()
    listed = torch.tensor([5, 9, 5, 5, 120])
    for out in both(q, kv, listed[None], torch.tensor([5])):
        assert relative(out[0], expected(q[0], kv[listed])) < 2e-6
        assert relative(out[0], expected(q[0], kv[[5, 9, 120]])) > 1e-2


@pytest.mark.parametrize("holes", ["leading block", "between", "behind", "every second"])
def test_11_minus_one_anywhere(holes: str) -> None:
    q, kv = queries(), keys()
    live = torch.arange(0, 150, 3)
    none = torch.full((64,), -1)
    listed = {
        "leading block": torch.cat([none, none, live]),
        "between": torch.cat([live[:20], none, live[20:]]),
        "behind": torch.cat([live, none]),
        "every second": torch.stack([none[:50], live], dim=1).flatten(),
    }[holes]
    lens = torch.tensor([len(listed)])
    for out, plain in zip(
        both(q, kv, listed[None], lens), both(q, kv, live[None], torch.tensor([len(live)])), strict=True
    ):
        assert torch.isfinite(out).all()
        assert relative(out, plain) < 1e-6
        assert relative(out[0], expected(q[0], kv[live])) < 2e-6
    other_negative = torch.where(listed < 0, -(2**31), listed)
    for out, plain in zip(
        both(q, kv, other_negative[None], lens), both(q, kv, listed[None], lens), strict=True
    ):
        assert torch.equal(out, plain)


def test_12_indices_beyond_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    q, kv = queries(), keys()
    listed = torch.tensor([[3, 256, 7, 2**31 - 1]])  # 200 rows, in 4 pages of 64
    lens = torch.tensor([4])
    monkeypatch.setenv("DSV4CORE_CHECK", "1")
    with pytest.raises(OpArgumentError, match="indices"):
        prefill(q, kv, listed, lens, SINK)
    with pytest.raises(OpArgumentError, match="swa_slots"):
        decode(q, pages(kv), listed, lens, SINK)
    monkeypatch.setenv("DSV4CORE_CHECK", "0")
    for out in both(q, kv, listed, lens):
        assert relative(out[0], expected(q[0], kv[[3, 7]])) < 2e-6


def test_12_a_selected_entry_without_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    topk = torch.tensor([[0, 70, 200, -1]], dtype=torch.int32)
    table = torch.tensor([[4, 9, -1]], dtype=torch.int32)
    arguments = (topk, torch.zeros(1, dtype=torch.int32), table, torch.tensor([True]))
    monkeypatch.setenv("DSV4CORE_CHECK", "1")
    with pytest.raises(OpArgumentError):
        ops().compute_global_topk_indices_and_lens(*arguments, rows=64)
    monkeypatch.setenv("DSV4CORE_CHECK", "0")
    slots, lens = ops().compute_global_topk_indices_and_lens(*arguments, rows=64)
    assert slots.tolist() == [[4 * 64, 9 * 64 + 6, -1, -1]]
    assert lens.tolist() == [2]
