"""Every profile and every page format through the layer: chunks, decode, the reference, and each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from harness import ALL_CANDIDATES, Rig, assert_same_bytes, chunks_of, relative, rig
from test_against_the_reference import assert_nearly_all_equal

from dsv4core import AttentionConfig
from dsv4core.layout import get_layout, transcode
from dsv4core_conformance.reference import Options

LENGTH = 270
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "official": ("official", {}),
    "sglang": ("sglang", {}),
    "fnuz": ("vllm", {"main_layout": "fp8_ds_mla_fnuz", "index_layout": "index_fp8_ue8m0x4"}),
    "fp8_row": ("sglang", {"main_layout": "fp8_row"}),
    "bf16_row": ("official", {"main_layout": "bf16_row"}),
}


def layer_of(case: str, kind: str, topk: int = ALL_CANDIDATES) -> Rig:
    profile, overrides = CASES[case]
    return rig(kind, profile, index_topk=topk, **overrides)


@pytest.mark.parametrize("topk", [ALL_CANDIDATES, 16])
@pytest.mark.parametrize("sizes", [(1, 5, 3, 17, 2, 131, 64), (4, 3)])
@pytest.mark.parametrize("case", CASES)
def test_any_chunks_write_the_same_bytes(case: str, sizes: tuple[int, ...], topk: int) -> None:
    layer = layer_of(case, "csa", topk)
    hidden = layer.hidden(LENGTH)
    chunked, once = layer.cache(), layer.cache()
    parts = layer.run(hidden, chunks_of(LENGTH, sizes), chunked)
    whole = layer.run(hidden, cache=once)
    assert_same_bytes(chunked.snapshot("a"), once.snapshot("a"))
    assert relative(parts, whole) < 2e-3


@pytest.mark.parametrize("kind", ["swa", "csa", "hca"])
@pytest.mark.parametrize("case", CASES)
def test_decode_equals_prefill(case: str, kind: str) -> None:
    layer = layer_of(case, kind)
    hidden = layer.hidden(LENGTH)
    whole = layer.run(hidden)
    stepped = layer.run(hidden, [LENGTH - 8, *[1] * 8])
    assert relative(stepped[-8:], whole[-8:]) < 2e-3
    norms = (stepped[-8:].double() - whole[-8:].double()).norm(dim=1) / whole[-8:].double().norm(dim=1)
    assert float(norms.max()) < 4e-3


@pytest.mark.parametrize("kind", ["swa", "hca"])
@pytest.mark.parametrize("profile", ["official", "sglang"])
def test_profiles_differ_in_the_indexer_only(profile: str, kind: str) -> None:
    layer, vllm = rig(kind, profile), rig(kind, "vllm")
    hidden = layer.hidden(LENGTH)
    mine, theirs = layer.cache(), vllm.cache()
    assert torch.equal(layer.run(hidden, cache=mine), vllm.run(hidden, cache=theirs))
    assert mine.digest("a") == theirs.digest("a")


@pytest.mark.parametrize("profile", ["official", "sglang"])
def test_against_the_reference_in_the_same_profile(profile: str) -> None:
    layer = rig("csa", profile, index_topk=ALL_CANDIDATES)
    hidden = layer.hidden(LENGTH)
    cache = layer.cache()
    out = layer.run(hidden, [131, 1, LENGTH - 132], cache)
    # CA1's roundings in every profile; the finer ones of an engine are told in docs/roundings.md.
    options = replace(Options.preset("vllm"), **{
        "official": {"idx_quant": "mxfp4_b32", "idx_hadamard": "both"},
        "sglang": {"idx_quant": "fp8_f32_b128", "idx_hadamard": "both"},
    }[profile])  # fmt: skip
    trace = layer.trace(hidden, options=options)
    keys = trace["index_entries"].astype(np.float32).astype(np.float64)
    assert_nearly_all_equal(
        layer.rows(cache, "indexer")[: LENGTH // 4], keys, 2.0**-3 if profile == "sglang" else 1.0
    )
    assert_nearly_all_equal(layer.rows(cache, "c4")[: LENGTH // 4], trace["entries"], 2.0**-3)
    assert relative(out, trace["out"]) < 6e-3


def test_fnuz_pages_are_ocp_pages_in_the_other_dialect() -> None:
    """A cache written with FNUZ codes is, transcoded, the one that the default profile writes."""
    fnuz, ocp = layer_of("fnuz", "hca"), rig("hca", "vllm")
    hidden = fnuz.hidden(LENGTH)
    mine, theirs = fnuz.cache(), ocp.cache()
    assert torch.equal(fnuz.run(hidden, cache=mine), ocp.run(hidden, cache=theirs))
    for key, rows in (("swa.2", 64), ("c128.2", 2)):
        got = transcode(mine.snapshot("a")[key], "fp8_ds_mla_fnuz", "fp8_ds_mla", rows=rows)
        want = theirs.snapshot("a")[key]
        decode = get_layout("fp8_ds_mla").decode_pages
        assert torch.equal(decode(got, rows), decode(want, rows))
        signs = (got != want) & (want != 0x80)
        assert not signs.any(), "only the sign of a zero is lost"


def test_fp8_row_costs_what_e4m3_without_a_block_scale_costs() -> None:
    layer, exact = rig("swa", "vllm", main_layout="fp8_row"), rig("swa", "vllm", main_layout="bf16_row")
    hidden = layer.hidden(LENGTH)
    assert 5e-3 < relative(layer.run(hidden), exact.run(hidden)) < 6e-2


def test_scores_of_sglang_pages_do_not_depend_on_company() -> None:
    """The f32 scale multiplies an exact sum: alone, in a batch, and in chunks of entries the same bits."""
    layer = rig("csa", "sglang", index_topk=8)
    config: AttentionConfig = layer.config
    ops, heads = layer.attention.ops, config.index_n_heads
    keys = torch.randn(300, 128, generator=torch.Generator().manual_seed(2)).bfloat16()
    layout = get_layout("index_fp8_hadamard_f32")
    pages = layout.encode_pages(torch.nn.functional.pad(keys, (0, 0, 0, 20)).view(5, 64, 128))
    q = torch.randint(0, 126, (9, heads, 128), generator=torch.Generator().manual_seed(3), dtype=torch.int32)
    q = q.to(torch.uint8).view(torch.float8_e4m3fn)
    weights = torch.randn(9, heads, generator=torch.Generator().manual_seed(4))
    lens = torch.tensor([300, 1, 64, 65, 299, 300, 7, 128, 0], dtype=torch.int32)
    table, rows = (
        torch.arange(5, dtype=torch.int32)[None],
        {"rows": 64, "layout": layout.id, "rotate": "hadamard"},
    )
    zeros = torch.zeros(9, dtype=torch.int32)
    whole = ops.indexer_logits(q, None, weights, pages, lens, zeros, table, max_len=300, **rows)
    for t in range(9):
        part = slice(t, t + 1)
        alone = ops.indexer_logits(
            q[part], None, weights[part], pages, lens[part], zeros[part], table, max_len=300, **rows
        )
        assert torch.equal(alone[0], whole[t])
    small = ops.sparse_indexer(
        q, None, weights, pages, lens, zeros, table, k=8, workspace_bytes=1 << 18, **rows
    )
    large = ops.sparse_indexer(
        q, None, weights, pages, lens, zeros, table, k=8, workspace_bytes=64 << 20, **rows
    )
    assert torch.equal(small, large) and torch.equal(small, ops.indexer_topk(whole, lens, k=8))
    codes, scale = layout.factors(layout.encode(keys))
    dots = torch.einsum("thd,sd->ths", q.float().double(), codes.double()).relu()
    exact = (dots * weights.double()[..., None]).sum(1) * scale.double()
    assert torch.allclose(whole[0].double(), exact[0], rtol=1e-6, atol=1e-6 * float(exact.abs().max()))
