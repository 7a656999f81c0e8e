"""The quantised layer against the float64 reference in the same profile: rows, entries, keys and output."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from harness import ALL_CANDIDATES, MAIN_GROUP, Rig, relative, rig

from dsv4core_conformance.reference import Options

LENGTH = 300
INDEX = {
    "index_fp8": {},
    "index_fp8_ue8m0x4": {},
    "index_fp8_hadamard_f32": {"idx_quant": "fp8_f32_b128", "idx_hadamard": "both"},
    "index_mxfp4": {"idx_quant": "mxfp4_b32"},
    "index_mxfp4_hadamard": {"idx_quant": "mxfp4_b32", "idx_hadamard": "both"},
}


def assert_nearly_all_equal(got: torch.Tensor, want: np.ndarray, step: float) -> None:
    """Hardly a value falls on the other side of a rounding boundary, and none further than one step away."""
    mine = got.double().numpy()
    assert mine.shape == want.shape
    assert (mine != want).mean() <= 1e-3
    assert (np.abs(mine - want) <= step * np.maximum(np.abs(want), 2.0**-9 * np.abs(want).max())).all()


def newest_window(layer: Rig, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Output, and the window rows that the newest token sees."""
    cache = layer.cache()
    out = layer.run(hidden, [131, 1, LENGTH - 132], cache)
    first_page = (LENGTH - 128) // 64
    return out, layer.rows(cache, "swa")[LENGTH - 128 - first_page * 64 : LENGTH - first_page * 64]


@pytest.mark.parametrize("kind", ["swa", "csa", "hca"])
def test_window_rows_and_output(kind: str) -> None:
    layer = rig(kind, "vllm", index_topk=ALL_CANDIDATES)
    hidden = layer.hidden(LENGTH)
    out, rows = newest_window(layer, hidden)
    trace = layer.trace(hidden)
    assert_nearly_all_equal(rows, trace["kv"][-128:], 2.0**-3)
    # The layer rounds o, z and its result to bf16, the reference none of them.
    assert relative(out, trace["out"]) < 6e-3
    exact = layer.trace(hidden, options=Options())
    assert 1e-2 < relative(out, exact["out"]) < 6e-2, "what fp8 rows cost"


@pytest.mark.parametrize("index_layout", list(INDEX))
def test_entries_and_index_keys_of_csa(index_layout: str) -> None:
    layer = rig("csa", "vllm", index_topk=ALL_CANDIDATES, index_layout=index_layout)
    hidden = layer.hidden(LENGTH)
    cache = layer.cache()
    layer.run(hidden, [131, 1, LENGTH - 132], cache)
    trace = layer.trace(hidden, options=replace(Options.preset("vllm"), **INDEX[index_layout]))
    assert_nearly_all_equal(layer.rows(cache, "c4")[: LENGTH // 4], trace["entries"], 2.0**-3)
    step = 2.0**-3 if index_layout.startswith("index_fp8") else 1.0
    want = trace["index_entries"].astype(np.float32).astype(np.float64)  # a code times a plain scale is wider
    assert_nearly_all_equal(layer.rows(cache, "indexer")[: LENGTH // 4], want, step)


@pytest.mark.parametrize("index_layout", list(INDEX))
def test_choice_of_csa(index_layout: str) -> None:
    layer = rig("csa", "vllm", index_topk=16, index_layout=index_layout)
    hidden = layer.hidden(LENGTH)
    options = replace(Options.preset("vllm"), **INDEX[index_layout])
    trace = layer.trace(hidden, options=options)
    cache = layer.cache()
    plan = cache.plan({"a": LENGTH})
    attention = layer.attention
    pages, table = cache.layer(layer.layer), attention.rope(plan)
    latent, kv = attention.latents(hidden)
    attention.queries(latent, kv, pages, plan, table)
    chosen = attention.compress(hidden, latent, pages, plan, table)
    scores = trace["index_scores"]
    tolerance = 2e-3 * np.abs(scores[np.isfinite(scores)]).max()
    same = 0
    for row, picks in enumerate(chosen.tolist()):
        taken = [pick for pick in picks if pick >= 0]
        left = sorted(set(range((row + 1) // 4)) - set(taken))
        assert len(taken) == min(16, (row + 1) // 4)
        assert not left or scores[row, taken].min() >= scores[row, left].max() - tolerance
        same += set(taken) == set(trace["selection"][row].tolist())
    assert same >= 0.9 * LENGTH


def test_entries_of_hca() -> None:
    layer = rig("hca", "vllm")
    hidden = layer.hidden(LENGTH)
    cache = layer.cache()
    layer.run(hidden, [131, 1, LENGTH - 132], cache)
    count = LENGTH // 128
    assert_nearly_all_equal(
        layer.rows(cache, MAIN_GROUP["hca"])[:count], layer.trace(hidden)["entries"], 2.0**-3
    )


@pytest.mark.parametrize("kind", ["csa", "hca"])
def test_states(kind: str) -> None:
    layer = rig(kind, "vllm")
    hidden = layer.hidden(LENGTH)
    cache = layer.cache()
    layer.run(hidden, [131, 1, LENGTH - 132], cache)
    trace = layer.trace(hidden)
    groups = {"csa": {"state_c4": "state", "state_indexer": "index_state"}, "hca": {"state_c128": "state"}}[
        kind
    ]
    for group, name in groups.items():
        rows = layer.rows(cache, group)
        owned = (rows != 0).any(dim=1).nonzero()[:, 0]
        kept = len(owned)
        assert kept >= (8 if kind == "csa" else 128)
        assert relative(rows[owned], trace[name][LENGTH - kept :]) < 1e-6
