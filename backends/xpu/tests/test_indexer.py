"""Index scores within their bound, lists exactly those of the scores."""

from __future__ import annotations

from typing import Any

import against
import pytest
import torch

from dsv4core.errors import OpArgumentError
from dsv4core.kernels.triton._select import select
from dsv4core.layout import get_layout
from dsv4core.ops import OPS, _scores

I32 = torch.int32


def scored(config: str, heads: int = 4) -> dict[str, Any]:
    given = against.arguments("indexer_logits", config, context=130)
    given["context_lens"] = against.spread(torch.tensor([130, 0, 1, 64, 129], dtype=I32))
    given["k_cache"] = against.in_parent(given["k_cache"], 3, 5)
    given["block_table"] = against.spread(given["block_table"])
    return given


@pytest.mark.parametrize("config", against.INDEX)
def test_indexer_logits(config: str) -> None:
    given = scored(config)
    got, body = against.kernel("indexer_logits")(**given), OPS["indexer_logits"].body(**given)
    assert torch.equal(got.isinf(), body.isinf())
    layout = get_layout(given["layout"])
    q = _scores.query_values(given["q"], given["q_scales"], torch.arange(5)).abs()
    for t, length in enumerate(given["context_lens"].tolist()):
        k, factor = _scores.entry_values(
            given["k_cache"], given["block_table"], t, slice(0, length), layout, given["rows"], "test"
        )
        bound = 1e-5 * ((q[t] @ k.abs().T) * given["weights"][t].double().abs().unsqueeze(1)).sum(0)
        bound = bound if factor is None else bound * factor
        assert ((got[t, :length] - body[t, :length]).double().abs() <= bound).all()


def test_shorter_than_the_context() -> None:
    given = scored("vllm")
    got = against.kernel("indexer_logits")(**{**given, "max_len": 70})
    assert torch.equal(got, against.kernel("indexer_logits")(**given)[:, :70])


@pytest.mark.parametrize("k", [1, 7, 300, 1000])
def test_indexer_topk(k: int) -> None:
    g = torch.Generator().manual_seed(k)
    logits = torch.randn(8, 300, generator=g)
    logits[0] = logits[0].mul(2).round()  # ties
    logits[1] = 0.5
    logits[2, ::3], logits[2, 1::3] = -0.0, 0.0
    logits[3, 5:50] = -torch.inf
    logits[4, 7], logits[4, 9] = torch.nan, torch.inf
    logits[5] = logits[5] * 1e-38
    lens = torch.tensor([300, 299, 300, 200, 150, 300, 0, 6], dtype=I32)
    against.exact(
        "indexer_topk", {"logits": against.columns(logits), "context_lens": against.spread(lens), "k": k}
    )


@pytest.mark.parametrize("k", [1, 7, 64, 100])
@pytest.mark.parametrize("width", [1, 5, 64])
def test_short_rows(k: int, width: int) -> None:
    g = torch.Generator().manual_seed(k)
    logits = torch.randn(70, width, generator=g).mul(2).round()
    logits[3, ::2], logits[4] = -0.0, -torch.inf
    lens = torch.randint(0, width + 1, (70,), generator=g, dtype=I32)
    against.exact("indexer_topk", {"logits": logits, "context_lens": lens, "k": k})


@pytest.mark.parametrize("k", [1, 7, 60])
def test_a_long_row_in_spans(k: int) -> None:
    g = torch.Generator().manual_seed(k)
    logits = torch.randn(6, 300, generator=g)
    logits[0] = logits[0].mul(2).round()
    logits[1] = 1.5
    logits[2, 100:] = -torch.inf
    lens = torch.tensor([300, 299, 300, 64, 65, 5], dtype=I32)
    out = torch.full((6, k), 9, dtype=I32)
    select(logits, lens, out, count=300, span=64)
    assert torch.equal(out, OPS["indexer_topk"].body(logits, lens, k=k))


@pytest.mark.parametrize("config", ["vllm", "official", "sglang"])
def test_sparse_indexer_is_its_two_halves_in_any_workspace(config: str) -> None:
    given = scored(config)
    logits = against.kernel("indexer_logits")(**given)
    expected = OPS["indexer_topk"].body(logits, given["context_lens"], k=7)
    del given["max_len"]
    for room in (1 << 20, 2 * 192 * 4, 4 * 4 * 7 + 8 * 64):
        got = against.kernel("sparse_indexer")(**given, k=7, workspace_bytes=room)
        assert torch.equal(got, expected), room


@pytest.mark.parametrize(
    ("changed", "name"),
    [({"k": 0}, "k"), ({"workspace_bytes": 600}, "workspace_bytes"), ({"rotate": "hadamard"}, "rotate"),
     ({"q_scales": torch.zeros(5, 4, 4, dtype=torch.uint8)}, "q_scales"),
     ({"layout": "index_f32"}, "layout")],
)  # fmt: skip
def test_refusals(changed: dict[str, Any], name: str) -> None:
    given = {**scored("vllm"), "k": 7, "workspace_bytes": 1 << 20}
    del given["max_len"]
    with pytest.raises(OpArgumentError, match=name):
        against.kernel("sparse_indexer")(**{**given, **changed})
