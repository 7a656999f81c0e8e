"""fp8 activations: scales and codes by definition, and the error that they cost a product."""

from __future__ import annotations

import pytest
import torch

from dsv4core import AttentionConfig, AttentionWeights, PagedCache, get_backend
from dsv4core.linear import Linear, QuantisedWeight, SplitLinear, activation
from dsv4core.numerics import block_fp8, group_fp4
from dsv4core.synthetic import hash_normal

BF16 = torch.bfloat16


@pytest.mark.parametrize("inputs", [128, 200, 1024])
def test_codes_and_scales(inputs: int) -> None:
    x = (hash_normal((9, inputs), 0, "x", 1.0) * torch.logspace(-7, 3, 9)[:, None]).to(BF16)
    x[4] = 0
    codes, scales = activation.quantise(x)
    assert codes.shape == x.shape and scales.shape == (9, -(-inputs // 128))
    for t in range(9):
        for g, part in enumerate(x[t].float().split(128)):
            amax = max(float(part.abs().max()), 1e-4)
            scale = float(scales[t, g])
            assert 2.0 ** round(torch.tensor(scale).log2().item()) == scale
            assert amax <= 448 * scale and amax > 224 * scale
            want = (part / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
            got = codes[t, g * 128 : g * 128 + len(part)]
            assert torch.equal(got.view(torch.uint8), want.view(torch.uint8))
    meant = codes.float() * scales.repeat_interleave(128, 1)[:, :inputs]
    assert torch.equal(activation.rounded(x).float(), meant), "exact in bf16"


def test_what_it_costs() -> None:
    """About 2.7 % of a product of normal values, as the codes have three bits of fraction."""
    x = hash_normal((64, 1024), 0, "x", 1.0, dtype=BF16)
    weight = QuantisedWeight(*block_fp8.quantise(hash_normal((256, 1024), 0, "w", 0.03), "ue8m0"))
    linears = get_backend("cpu").linears
    exact = x.double() @ weight.dequantised().double().T

    def off(quantise: bool) -> float:
        got = linears.linear(weight, BF16, quantise=quantise)(x)
        return float((got.double() - exact).norm() / exact.norm())

    assert off(False) < 4e-3 and 2e-2 < off(True) < 3.2e-2
    rounded = activation.rounded(x).double() @ weight.dequantised().double().T
    got = linears.linear(weight, BF16, quantise=True)(x)
    assert float((got.double() - rounded).norm() / rounded.norm()) < 4e-3, "nothing but the activations"


@pytest.mark.parametrize("scale", ["ue8m0", "f32"])
@pytest.mark.parametrize("out", [BF16, torch.float32])
def test_widened_weights_keep_the_wish(scale: str, out: torch.dtype) -> None:
    """Activations are rounded because of the stored format and the setting, not of what holds the matrix."""
    x = hash_normal((9, 256), 0, "x", 1.0, dtype=BF16)
    weight = QuantisedWeight(*block_fp8.quantise(hash_normal((128, 256), 0, "w", 0.03), scale))
    linears = get_backend("cpu").linears
    stored = linears.linear(weight, BF16, out=out, quantise=True)(x)
    widened = linears.widening(BF16).linear(weight, BF16, out=out, quantise=True)
    assert widened.problem.format == "bf16" and widened.problem.quantise
    if scale == "ue8m0":
        assert torch.equal(widened(x), stored)
    else:  # the matrix is rounded to bf16
        assert float((widened(x).double() - stored.double()).norm() / stored.double().norm()) < 4e-3
    plain = linears.widening(BF16).linear(weight, BF16, out=out)
    assert not plain.problem.quantise and not torch.equal(plain(x), widened(x))
    for matrix in (weight.dequantised(BF16), QuantisedWeight(*group_fp4.quantise_mx(weight.dequantised()))):
        assert not linears.widening(BF16).linear(matrix, BF16, quantise=True).problem.quantise


def test_widened_weights_are_joined_where_their_activations_are_the_same() -> None:
    linears = get_backend("cpu").linears.widening(BF16)
    x = hash_normal((5, 256), 0, "x", 1.0, dtype=BF16)
    plain = hash_normal((64, 256), 0, "p", 0.03, dtype=BF16)
    fp8 = [QuantisedWeight(*block_fp8.quantise(hash_normal((128, 256), i, "w", 0.03), s))
           for i, s in enumerate(("ue8m0", "f32"))]  # fmt: skip
    for quantise, parts, joined in (
        (True, fp8, True), (True, [fp8[0], plain], False), (False, [fp8[0], plain], True),
    ):  # fmt: skip
        both = linears.joined(*parts, x=BF16, quantise=quantise)
        assert isinstance(both, Linear if joined else SplitLinear)
        each = [linears.linear(part, BF16, quantise=quantise)(x) for part in parts]
        assert torch.equal(both(x), torch.cat(each, 1))


def test_a_layer_of_widened_weights_has_fp8_activations_too() -> None:
    outputs = {}
    for storage in ("checkpoint", "widened"):
        for quant in (None, "ue8m0"):
            config = AttentionConfig.preset(
                "tiny", activation_quant=quant, weight_storage=storage, q_lora_rank=128
            )
            tensors = AttentionWeights.random(config, 1).state_dict()
            for name in ("wq_a", "wkv", "wq_b", "wo_b", "indexer.wq_b"):
                tensors[name], tensors[f"{name}.scale"] = block_fp8.quantise(tensors[name], "ue8m0")
            attention = get_backend("cpu").attention(config, 1, AttentionWeights.from_state_dict(tensors))
            cache = PagedCache.allocate(config, [1], 200)
            hidden = hash_normal((130, 64), 0, "hidden", 1.0, dtype=BF16)
            outputs[storage, quant] = attention(hidden, cache, cache.plan({"a": 130}))
    for quant in (None, "ue8m0"):
        assert torch.equal(outputs["checkpoint", quant], outputs["widened", quant])
    assert not torch.equal(outputs["checkpoint", None], outputs["checkpoint", "ue8m0"])
