"""fp8 activations: scales and codes by definition, and the error that they cost a product."""

from __future__ import annotations

import pytest
import torch

from dsv4core import get_backend
from dsv4core.linear import QuantisedWeight, activation
from dsv4core.numerics import block_fp8
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
