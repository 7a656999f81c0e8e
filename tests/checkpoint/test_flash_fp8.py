"""A V4-Flash layer from an fp8 checkpoint: against float64 on the same matrices, and each projection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from dsv4core import AttentionConfig, AttentionWeights, PagedCache, get_backend
from dsv4core.checkpoint import write_synthetic
from dsv4core.linear import QuantisedWeight
from dsv4core.synthetic import hash_normal
from dsv4core_conformance.reference import Options, ReferenceConfig, ReferenceLayer

pytestmark = pytest.mark.slow

BF16 = torch.bfloat16
LAYER, TOKENS = 2, 40  # a ratio-4 layer; all of its ten entries are selected
LAYER_BOUND = 5.8e-3  # bf16 roundings of a layer, P included, on equal cache codes
MATMUL = 4e-3


@pytest.fixture(scope="module")
def flash(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[AttentionConfig, AttentionWeights]]:
    config = AttentionConfig.preset("v4-flash")
    path = write_synthetic(tmp_path_factory.mktemp("flash") / "x", config, [LAYER], 5)
    yield config, AttentionWeights.from_checkpoint(path, config, LAYER)


def test_layer_against_float64(flash) -> None:
    c, weights = flash
    attention = get_backend("cpu").attention(c, LAYER, weights)
    assert attention.wq_b.problem.format == "fp8_block", "it stays as it is stored"
    cache = PagedCache.allocate(c, [LAYER], 256)
    hidden = hash_normal((TOKENS, c.hidden_size), 0, "hidden", 1.0, dtype=BF16)
    out = attention(hidden, cache, cache.plan({"a": TOKENS}))
    sizes = ReferenceConfig(
        c.hidden_size, c.num_attention_heads, c.q_lora_rank, c.o_groups, c.o_lora_rank, c.index_n_heads,
        c.index_topk,
    )  # fmt: skip
    arrays = {name: tensor.float().numpy() for name, tensor in weights.dequantised(BF16).state_dict().items()}
    rows = [0, 3, 17, TOKENS - 1]
    options = replace(Options.preset("vllm"), p_dtype="fp32")  # the weights of attention are not rounded
    reference = ReferenceLayer(sizes, 4, arrays, options)
    expected = torch.from_numpy(reference.run(hidden.double().numpy(), rows)["out"])
    assert float((out[rows].double() - expected).norm() / expected.norm()) <= LAYER_BOUND


def test_stored_against_dequantised(flash) -> None:
    """Every fp8 projection alone: equal bits over UE8M0 scales, since bf16 holds the matrix."""
    _, weights = flash
    linears = get_backend("cpu").linears
    seen = []
    for name, weight in weights.flat().items():
        if not isinstance(weight, QuantisedWeight) or name == "wo_a":
            continue
        seen.append(name)
        x = hash_normal((4, weight.shape[1]), 1, name, 1.0, dtype=BF16)
        stored = linears.linear(weight, BF16)(x)
        matrix = weight.dequantised(BF16)
        assert torch.equal(stored, linears.linear(matrix, BF16)(x)), name
        exact = x.double() @ weight.dequantised().double().T
        assert float((stored.double() - exact).norm() / exact.norm()) <= MATMUL, name
    assert seen == ["wq_a", "wq_b", "wkv", "wo_b", "indexer.wq_b"]
