"""Ops without pages: norms, states, slots, rotations, the indexer's queries, index lists."""

from __future__ import annotations

from typing import Any

import against
import pytest
import torch

I32 = torch.int32


@pytest.mark.parametrize("q", [24, 1024, 1536])
@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
def test_fused_q_kv_rmsnorm(q: int, weights: torch.dtype) -> None:
    joined = against.corners((11, q + 512))
    g = torch.Generator().manual_seed(1)
    against.exact("fused_q_kv_rmsnorm", {
        "qr": joined[:, :q], "kv": joined[:, q:], "q_weight": torch.randn(q, generator=g).to(weights),
        "kv_weight": torch.randn(512, generator=g).to(weights), "eps": 1e-6,
    })  # fmt: skip


@pytest.mark.parametrize("ratio", [4, 128])
def test_save_partial_states(ratio: int) -> None:
    given = against.arguments("save_partial_states", tokens=9)
    width = 1024 if ratio == 4 else 512
    parent = torch.full((5, 4, 2 * width + 16), 9.0)
    g = torch.Generator().manual_seed(1)
    joined = torch.randn(9, 2 * width, generator=g)
    slots = torch.tensor([3, -1, 0, 19, -(2**33), 7, 8])
    against.exact("save_partial_states", {
        **given, "kv": joined[:, :width], "score": joined[:, width:],
        "ape": torch.randn(ratio, width, generator=g), "ratio": ratio,
        "state_cache": parent[..., : 2 * width], "slot_mapping": against.spread(slots),
    })  # fmt: skip


def test_compressed_slot_mapping() -> None:
    given = against.arguments("compressed_slot_mapping", tokens=9)
    given["positions"] = torch.tensor([3, 4, 7, 255, 259, 511, 1023, 3, -1])
    given["slot_mapping"] = torch.tensor([0, 1, -1, 3, 4, 5, 6])
    given["block_table"][3, 0] = -1
    for table in (given["block_table"], against.spread(given["block_table"]), given["block_table"][:0]):
        against.exact("compressed_slot_mapping", {**given, "block_table": table})


@pytest.mark.parametrize("op", ["inverse_rope", "fused_inv_rope_fp8_quant"])
@pytest.mark.parametrize("heads", [2, 4, 64, 6])
def test_rotations_back(op: str, heads: int) -> None:
    given = against.arguments(op, tokens=5)
    given["o"] = against.columns(against.corners((5, heads, 512)))
    given["positions"] = against.spread(given["positions"])
    if op == "inverse_rope":
        against.exact(op, given)
        return
    for scale_format in ("f32", "ue8m0x4"):
        against.exact(op, {**given, "groups": 2, "scale_format": scale_format})


@pytest.mark.parametrize("config", against.INDEX)
@pytest.mark.parametrize("heads", [1, 3, 64])
def test_fused_indexer_q_rope_quant(config: str, heads: int) -> None:
    given = against.arguments("fused_indexer_q_rope_quant", config, tokens=4)
    given["q"] = against.columns(against.corners((4, heads, 128)))
    given["weights"] = against.columns(torch.randn(4, heads, generator=torch.Generator().manual_seed(2)))
    against.exact("fused_indexer_q_rope_quant", given)
    against.exact("fused_indexer_q_rope_quant", {**given, "rotate": "hadamard", "softmax_scale": 0.1})


def lists(seed: int) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    table = torch.randint(-1, 50, (3, 4), generator=g, dtype=I32)
    return {
        "topk": torch.randint(-3, 270, (7, 37), generator=g, dtype=I32),
        "token_to_req": torch.randint(0, 3, (7,), generator=g, dtype=I32), "block_table": table,
        "is_valid": torch.tensor([True, False, True, True, True, False, True]), "rows": 64,
    }  # fmt: skip


def test_compute_global_topk_indices_and_lens() -> None:
    op = "compute_global_topk_indices_and_lens"
    against.exact(op, lists(0))
    given = lists(1)
    given["topk"], given["block_table"] = against.spread(given["topk"]), against.spread(given["block_table"])
    given["is_valid"] = torch.tensor([True, False] * 7)[::2].logical_and(given["is_valid"])
    against.exact(op, given)
    against.exact(op, {**lists(2), "topk": torch.empty(7, 0, dtype=I32)})
    against.exact(op, {**lists(2), "block_table": torch.empty(0, 4, dtype=I32)})
    against.exact(op, {**lists(2), "rows": 7})


@pytest.mark.parametrize("top_k", [0, 5, 40])
@pytest.mark.parametrize("first", [0, 11])
def test_combine_topk_swa_indices(top_k: int, first: int) -> None:
    g = torch.Generator().manual_seed(top_k)
    starts = torch.tensor([0, 3, 3, 8, 9], dtype=I32) + first
    seq = torch.tensor([3, 200, 170, 64], dtype=I32)
    against.exact("combine_topk_swa_indices", {
        "topk": against.spread(torch.randint(-1, 40, (9, 40), generator=g, dtype=I32)),
        "query_start_loc": starts, "seq_lens": seq, "gather_lens": torch.tensor([3, 127, 132, 64], dtype=I32),
        "window": 128, "ratio": 4 if top_k else 0, "top_k": top_k, "M": 300, "N": 60,
    })  # fmt: skip
