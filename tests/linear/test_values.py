"""Weights that hold no numbers are refused the same way, whatever the format and the kernel."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dsv4core import AttentionConfig, AttentionWeights, WeightsError, get_backend
from dsv4core.linear import QuantisedWeight, weight
from dsv4core.numerics import block_fp8, group_fp4
from dsv4core.synthetic import hash_normal

BF16 = torch.bfloat16
NAN, INF = float("nan"), float("inf")


def stored(kind: str, rows: int = 128) -> QuantisedWeight:
    matrix = hash_normal((rows, 256), 0, "w", 0.1)
    if kind == "nvfp4":
        return QuantisedWeight(*group_fp4.quantise_nv(matrix))
    return QuantisedWeight(
        *(group_fp4.quantise_mx(matrix) if kind == "mxfp4" else block_fp8.quantise(matrix, kind))
    )


def spoiled(kind: str, part: str, value: float | int) -> QuantisedWeight:
    found = stored(kind)
    tensor = getattr(found, part).clone()
    (tensor if isinstance(value, float) else tensor.view(torch.uint8)).view(-1)[-1] = value
    parts = {name: getattr(found, name) for name in ("weight", "scales", "global_scale")}
    return QuantisedWeight(**{**parts, part: tensor})


BAD = [
    ("ue8m0", "weight", 0x7F, "codes"), ("f32", "weight", 0xFF, "codes"),
    ("f32", "scales", NAN, "scales"), ("f32", "scales", INF, "scales"), ("f32", "scales", -INF, "scales"),
    ("nvfp4", "scales", 0x7F, "scales"), ("nvfp4", "scales", 0xFF, "scales"),
    ("nvfp4", "global_scale", NAN, "factor"), ("nvfp4", "global_scale", INF, "factor"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "part", "value", "named"), BAD)
def test_no_numbers(monkeypatch, kind: str, part: str, value: float | int, named: str) -> None:
    bad, linears = spoiled(kind, part, value), get_backend("cpu").linears
    message = (
        rf"a weight \[128, 256\] in {bad.format.id}: NaN or Inf in the {named}; read or quantise it anew"
    )
    for kernel in ("op", "native,op"):
        monkeypatch.setenv("DSV4CORE_LINEAR", kernel)
        with pytest.raises(WeightsError, match=message):
            linears.linear(bad, BF16)
        with pytest.raises(WeightsError, match=message):
            linears.joined(stored(kind), bad, x=BF16)
        with pytest.raises(WeightsError, match=message):
            linears.widening(BF16).linear(bad, BF16)


@pytest.mark.parametrize("kind", ["ue8m0", "f32", "nvfp4", "mxfp4"])
def test_every_other_value_is_a_number(kind: str) -> None:
    stored(kind).check_values()
    if kind in ("nvfp4", "mxfp4"):
        spoiled(kind, "weight", 0xFF).check_values()
    if kind in ("ue8m0", "mxfp4"):  # byte 255 reads as 2^127
        spoiled(kind, "scales", 255).check_values()
    else:
        spoiled(kind, "scales", 0x7E).check_values()


def test_a_large_matrix_is_looked_at_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for chunk in (1, 256, 1000, 1 << 20):
        monkeypatch.setattr(weight, "CHUNK", chunk)
        stored("ue8m0", 130).check_values()
        for place in (0, 60, 129):
            bad = stored("ue8m0", 130)
            bad.weight.view(torch.uint8)[place, 3] = 0xFF
            with pytest.raises(WeightsError, match="NaN or Inf in the codes"):
                bad.check_values()
    empty = QuantisedWeight(*block_fp8.quantise(torch.zeros(0, 256), "f32"))
    empty.check_values()


def test_tensors_without_values_pass() -> None:
    stored("nvfp4").to("meta").check_values()
    with FakeTensorMode(allow_non_fake_inputs=True):
        codes = torch.empty(128, 256, dtype=torch.float8_e4m3fn)
        QuantisedWeight(codes, torch.empty(1, 2)).check_values()


def test_a_layer_says_which_tensor() -> None:
    config = AttentionConfig.preset("tiny", q_lora_rank=128)
    tensors = AttentionWeights.random(config, 1).state_dict()
    for name in ("wq_a", "wkv", "wq_b", "indexer.wq_b"):
        tensors[name], tensors[f"{name}.scale"] = block_fp8.quantise(tensors[name], "ue8m0")
    for name in ("wkv", "indexer.wq_b"):
        tensors[name].view(torch.uint8)[3, 3] = 0x7F
    weights = AttentionWeights.from_state_dict(tensors)
    for storage in ("checkpoint", "widened"):
        with pytest.raises(WeightsError) as caught:
            get_backend("cpu").attention(config.model_copy(update={"weight_storage": storage}), 1, weights)
        assert str(caught.value).startswith("wkv: a weight [512, 64] in fp8_block: NaN or Inf in the codes")
        assert "; indexer.wq_b: a weight [" in str(caught.value)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_factor_of_any_shape_with_one_value(shape: tuple[int, ...]) -> None:
    found = stored("nvfp4")
    assert found.global_scale is not None
    other = QuantisedWeight(found.weight, found.scales, found.global_scale.reshape(shape))
    assert other.global_scale is not None and other.global_scale.shape == (1,)
    x = hash_normal((3, 256), 0, "x", 1.0, dtype=BF16)
    linears = get_backend("cpu").linears
    assert torch.equal(linears.linear(other, BF16)(x), linears.linear(found, BF16)(x))
    with pytest.raises(WeightsError, match=r"the factor is float32 \[2\], expected one float32"):
        QuantisedWeight(found.weight, found.scales, torch.ones(2))
