"""Stored weights in a kernel: every format and cut against float64, groups, fp8 activations, split sums."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dsv4core import AttentionConfig, AttentionWeights, PagedCache, WeightsError, get_backend
from dsv4core.checkpoint import write_synthetic
from dsv4core.kernels.triton._launch import LAUNCHES
from dsv4core.kernels.triton.dequantise_weight import dequantise_weight
from dsv4core.kernels.triton.quantise_activation import quantise_activation, rounded_activation
from dsv4core.kernels.triton.quantised_linear import Tile, quantised_linear
from dsv4core.linear import Linears, QuantisedWeight, activation
from dsv4core.linear.triton_kernel import TritonLinear
from dsv4core.numerics import block_fp8, group_fp4
from dsv4core.synthetic import hash_normal
from dsv4core_conformance.inputs.vast import vast_rows

BF16, F32 = torch.bfloat16, torch.float32
KINDS = ("ue8m0", "u8", "f32", "nvfp4", "mxfp4")
FAR, CPU = (1 << 30) + 16, torch.device("cpu")  # the third of so many elements is past 2^31


def stored(kind: str, rows: int, inputs: int) -> QuantisedWeight:
    """A random weight; its scales differ by block and group."""
    spread = hash_normal((rows, inputs), 0, "w", 0.1) * torch.logspace(-2, 1, inputs)
    if kind == "nvfp4":
        return QuantisedWeight(*group_fp4.quantise_nv(spread))
    if kind == "mxfp4":
        return QuantisedWeight(*group_fp4.quantise_mx(spread))
    codes, scales = block_fp8.quantise(spread, "f32" if kind == "f32" else "ue8m0")
    return QuantisedWeight(codes, scales.view(torch.uint8) if kind == "u8" else scales)


def product(x: Tensor, weight: QuantisedWeight, groups: int = 1) -> Tensor:
    """float64. Shapes: x [T, G, in] -> [T, rows]."""
    dense = weight.dequantised().double().view(groups, -1, x.shape[2])
    return torch.einsum("tgk,grk->tgr", x.double(), dense).flatten(1)


def off(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.parametrize(
    ("tile", "tokens", "rows", "inputs", "groups"),
    [
        (Tile(64, 16, 128, 1, 4, 2), 5, 130, 224, 1),
        (Tile(64, 16, 128, 3, 4, 2), 17, 128, 384, 2),
        (Tile(128, 32, 64, 2, 4, 2), 1, 128, 512, 1),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_every_format_and_cut(
    kind: str, tile: Tile, tokens: int, rows: int, inputs: int, groups: int
) -> None:
    weight = stored(kind, rows, inputs)
    x = hash_normal((tokens, groups, inputs + 8), 0, "x", 1.0, dtype=BF16)[:, :, 8:]  # a column slice
    for dtype, bound in ((F32, 1e-6), (BF16, 4e-3)):
        got = quantised_linear(
            x, None, weight.weight, weight.scales, weight.global_scale, format=weight.format.id,
            groups=groups, tile=tile, out_dtype=dtype,
        )  # fmt: skip
        assert got.dtype == dtype and off(got, product(x, weight, groups)) <= bound


def test_codes_that_are_nan_are_refused() -> None:
    weight = stored("u8", 128, 128)
    weight.weight.view(torch.uint8)[5, 7] = 0xFF
    with pytest.raises(WeightsError, match=r"a weight \[128, 128\] in fp8_block: NaN or Inf in the codes"):
        Linears(get_backend("cpu").ops, [TritonLinear()]).linear(weight, BF16)


@pytest.mark.parametrize("kind", ["ue8m0", "f32"])
@pytest.mark.parametrize("groups", [1, 2])
def test_fp8_activations(kind: str, groups: int) -> None:
    weight, x = stored(kind, 256, 384), hash_normal((7, groups, 384), 0, "x", 1.0, dtype=BF16)
    codes, scales = quantise_activation(x.flatten(0, 1))
    meant = activation.rounded(x.flatten(0, 1)).view(x.shape)
    got = quantised_linear(
        codes.view(x.shape), scales.view(7, groups, 3), weight.weight, weight.scales, None,
        format="fp8_block", out_dtype=F32, groups=groups,
    )  # fmt: skip
    assert off(got, product(meant, weight, groups)) <= 1e-6


@pytest.mark.parametrize("kind", ["u8", "nvfp4"])
def test_scales_of_a_weight_past_2_31_elements(kind: str) -> None:
    weight, x = stored(kind, 384, 128), hash_normal((2, 1, 128), 0, "x", 1.0, dtype=BF16)
    scales = vast_rows(weight.scales.view(torch.uint8), FAR, CPU).view(weight.scales.dtype)
    got = quantised_linear(
        x, None, weight.weight, scales, weight.global_scale, format=weight.format.id, out_dtype=F32
    )
    assert off(got, product(x, weight)) <= 1e-6


@pytest.mark.parametrize("first", ["tokens", "groups"])
def test_inputs_and_their_scales_past_2_31_elements(first: str) -> None:
    weight, x = stored("u8", 192, 128), hash_normal((3, 3, 128), 0, "x", 1.0, dtype=BF16)

    def far(t: Tensor) -> Tensor:
        by_group = first == "groups"
        placed = vast_rows(t.transpose(0, 1) if by_group else t, FAR, CPU)
        return placed.transpose(0, 1) if by_group else placed

    codes, scales = quantise_activation(x.flatten(0, 1))
    for given, factors in ((x, None), (codes.view(x.shape), far(scales.view(3, 3, 1)))):
        meant = x if factors is None else activation.rounded(x.flatten(0, 1)).view(x.shape)
        got = quantised_linear(
            far(given), factors, weight.weight, weight.scales, None, format="fp8_block", out_dtype=F32,
            groups=3,
        )  # fmt: skip
        assert off(got, product(meant, weight, 3)) <= 1e-6


def test_activation_bytes_are_those_of_torch() -> None:
    x = (hash_normal((37, 640), 0, "x", 1.0) * torch.logspace(-8, 4, 37)[:, None]).to(BF16)
    x[3] = 0
    for given in (x, torch.cat((x, x), 1)[:, :640]):
        codes, scales = quantise_activation(given)
        want, factors = activation.quantise(given)
        assert torch.equal(codes.view(torch.uint8), want.view(torch.uint8)) and torch.equal(scales, factors)
        by_column = quantise_activation(given, by_column=True)[1]
        assert torch.equal(by_column, factors) and by_column.stride() == (1, 37)
        assert torch.equal(rounded_activation(given), activation.rounded(given))


@pytest.mark.parametrize("kind", KINDS)
def test_dequantised_matrices_are_those_of_torch(kind: str) -> None:
    weight = stored(kind, 130, 416)
    got = dequantise_weight(weight.weight, weight.scales, weight.global_scale, format=weight.format.id)
    assert torch.equal(got, weight.dequantised(BF16))


def test_no_tokens() -> None:
    weight = stored("ue8m0", 128, 256)
    got = quantised_linear(
        torch.zeros(0, 1, 256, dtype=BF16), None, weight.weight, weight.scales, None, format="fp8_block",
        out_dtype=BF16,
    )  # fmt: skip
    assert got.shape == (0, 128)


@pytest.mark.parametrize("kind", KINDS)
def test_the_candidate_without_tokens(kind: str) -> None:
    linears = Linears(get_backend("cpu").ops, [TritonLinear()])
    weight, x = stored(kind, 128, 256), torch.zeros(0, 256, dtype=BF16)
    for quantise in (False, True):
        for out in (BF16, F32):
            linear = linears.linear(weight, BF16, out=out, quantise=quantise)
            got = linear(x)
            assert linear.choice.kernel.name == "triton" and got.shape == (0, 128) and got.dtype == out
    assert linears.linear(weight, BF16, groups=2)(x.view(0, 2, 256)).shape == (0, 2, 64)
    if weight.format.id == "fp8_block":
        grouped = linears.linear(weight, torch.float8_e4m3fn, out=BF16, groups=2)
        codes = x.view(0, 2, 256).to(torch.float8_e4m3fn)
        for scales in (torch.zeros(0, 2, 2), torch.zeros(0, 2, 1, dtype=torch.int32)[:, :, :0]):
            assert grouped.choice.kernel.name == "triton" and grouped(codes, scales).shape == (0, 2, 64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [5, 130])
@pytest.mark.parametrize("quantise", [False, True])
def test_the_candidate_with_channels_that_lie_apart(kind: str, tokens: int, quantise: bool) -> None:
    weight, x = stored(kind, 128, 256), hash_normal((tokens, 256), 0, "x", 1.0, dtype=BF16)
    linear = Linears(get_backend("cpu").ops, [TritonLinear()]).linear(weight, BF16, quantise=quantise)
    want = linear(x)
    for other in (x.t().contiguous().t(), x.repeat_interleave(2, 1)[:, ::2]):
        assert other.stride(1) != 1 and torch.equal(linear(other), want)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [3, 200])
def test_the_candidate_beside_the_op(kind: str, tokens: int) -> None:
    """Few tokens in the kernel, many over a dense matrix: both are the op's product."""
    weight, x = stored(kind, 256, 256), hash_normal((tokens, 256), 0, "x", 1.0, dtype=BF16)
    linears = Linears(get_backend("cpu").ops, [TritonLinear()])
    before = LAUNCHES.total()
    linear = linears.linear(weight, BF16)
    assert linear.choice.kernel.name == "triton"
    assert off(linear(x), product(x[:, None], weight)) <= 4e-3 and LAUNCHES.total() > before
    grouped = linears.linear(weight, BF16, groups=2)(
        x.view(tokens, 2, 128).repeat(1, 1, 2).view(tokens, 2, 256)
    )
    assert grouped.shape == (tokens, 2, 128)


@pytest.mark.parametrize(
    ("format", "output_quant"), [("fp8_block", None), ("fp8_block", "ue8m0x4"), ("nvfp4", None)]
)
def test_a_layer(tmp_path: Path, format: str, output_quant: str | None) -> None:
    """A layer with stored weights through the kernels, beside the CPU backend."""
    sizes = {"hidden_size": 128, "q_lora_rank": 128, "o_lora_rank": 128}
    config = AttentionConfig.preset("tiny", output_quant=output_quant, **sizes)
    path = write_synthetic(tmp_path / "x", config, [0], format=format)
    weights = AttentionWeights.from_checkpoint(path, config, 0)
    hidden = hash_normal((9, 128), 0, "hidden", 1.0, dtype=BF16)
    outputs = []
    for name in ("cpu", "xpu"):
        attention = get_backend(name).attention(config, 0, weights)
        cache = PagedCache.allocate(config, [0], 200)
        outputs.append(attention(hidden, cache, cache.plan({"a": 9})))
        assert (attention.wq_b.choice.kernel.name == "triton") == (name == "xpu")
    # Codes of cache rows, and of the quantised output, may flip beside a tie.
    assert off(outputs[1], outputs[0].double()) <= (2e-2 if output_quant is None else 4e-2)
