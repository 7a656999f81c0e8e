"""NVFP4 and MXFP4: the codec, checkpoints under vendors' names, layers with every projection quantised."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsv4core import AttentionConfig, AttentionWeights, PagedCache, WeightsError, get_backend
from dsv4core.checkpoint import Checkpoint, write_synthetic
from dsv4core.linear import QuantisedWeight
from dsv4core.numerics import e4m3, group_fp4, ue8m0
from dsv4core.synthetic import hash_normal
from dsv4core.tensor_names import QUANTISABLE, RELEASED

BF16 = torch.bfloat16
SIZES = {"hidden_size": 128, "q_lora_rank": 64, "o_lora_rank": 64}
SMALL = AttentionConfig.preset("tiny", **SIZES)


@pytest.mark.parametrize("factor", [1.0, 2.0**-7, 0.0123])
def test_nvfp4_round_trip_of_values_on_the_grid(factor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    packed = torch.randint(0, 256, (96, 160), generator=generator, dtype=torch.uint8)
    scales = torch.randint(0, 0x7F, (96, 20), generator=generator, dtype=torch.uint8).view(
        torch.float8_e4m3fn
    )
    overall = torch.tensor([factor])
    values = group_fp4.dequantise(packed, scales, overall)
    again = group_fp4.quantise_nv(values, overall)
    assert torch.equal(group_fp4.dequantise(*again), values)


def test_mxfp4_round_trip_of_values_on_the_grid() -> None:
    generator = torch.Generator().manual_seed(0)
    packed = torch.randint(0, 256, (96, 160), generator=generator, dtype=torch.uint8)
    byte = torch.randint(20, 230, (96, 10), generator=generator, dtype=torch.uint8)
    values = group_fp4.dequantise(packed, byte)
    assert torch.equal(group_fp4.dequantise(*group_fp4.quantise_mx(values)), values)


def test_errors_are_those_of_the_grids() -> None:
    weight = hash_normal((64, 512), 0, "w", 0.05)
    nv, mx = (
        group_fp4.dequantise(*group_fp4.quantise_nv(weight)),
        group_fp4.dequantise(*group_fp4.quantise_mx(weight)),
    )
    assert 0.05 < float((nv - weight).norm() / weight.norm()) < 0.1
    assert 0.1 < float((mx - weight).norm() / weight.norm()) < 0.13
    codes, scales, factor = group_fp4.quantise_nv(weight)
    assert float(e4m3.decode(scales.view(torch.uint8)).max()) == 448.0
    assert float(factor) == pytest.approx(float(weight.abs().max()) / 2688)
    assert not group_fp4.dequantise(*group_fp4.quantise_nv(torch.zeros(2, 32))).any()
    assert not group_fp4.dequantise(*group_fp4.quantise_mx(torch.zeros(2, 32))).any()
    assert codes.shape == (64, 256) and ue8m0.exp2(torch.tensor([0], dtype=torch.int32)) == 1


@pytest.mark.parametrize("names", ["deepseek", "hf"])
@pytest.mark.parametrize(("format", "projections"), [
    ("nvfp4", "all"), ("mxfp4", "all"), ("fp8_block", "all"), ("nvfp4", "released"),
])  # fmt: skip
def test_checkpoint(tmp_path: Path, format: str, projections: str, names: str) -> None:
    path = write_synthetic(
        tmp_path / "x", SMALL, [1], 5, format=format, projections=projections, names=names, shard_bytes=60_000
    )
    drawn = AttentionWeights.random(SMALL, 1, 5).state_dict()
    seen: list[int] = []
    weights = AttentionWeights.from_checkpoint(
        path, SMALL, 1, progress=lambda _, done, total: seen.append(total)
    )
    assert seen[0] == sum(tensor.nbytes for tensor in weights.state_dict().values())
    quantised = QUANTISABLE if projections == "all" else RELEASED
    for name, weight in weights.flat().items():
        assert isinstance(weight, QuantisedWeight) == (name in quantised), name
        if isinstance(weight, QuantisedWeight):
            assert weight.format.id == format and weight.shape == drawn[name].shape
            error = weight.dequantised() - drawn[name].float()
            assert float(error.norm() / drawn[name].float().norm()) < 0.13
        else:
            assert torch.equal(weight, drawn[name])
    again = AttentionWeights.from_state_dict(weights.state_dict()).dequantised().state_dict()
    dense = weights.dequantised().state_dict()
    assert all(torch.equal(again[name], dense[name]) for name in dense)
    assert Checkpoint.open(path).config() == SMALL


@pytest.mark.parametrize("profile", ["vllm", "math"])
@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("format", ["nvfp4", "mxfp4", "fp8_block"])
def test_a_layer_with_every_projection_quantised(
    tmp_path: Path, format: str, layer: int, profile: str
) -> None:
    """Equal to the layer of the same matrices made dense, in f32 (profile math) to the last bits."""
    config = AttentionConfig.preset("tiny", profile=profile, **SIZES)
    path = write_synthetic(tmp_path / "x", config, [layer], 5, format=format, projections="all")
    stored = AttentionWeights.from_checkpoint(path, config, layer)
    outputs, caches = [], []
    for weights in (stored, stored.dequantised()):
        attention = get_backend("cpu").attention(config, layer, weights)
        cache = PagedCache.allocate(config, [layer], 300)
        hidden = hash_normal((140, 128), 0, "hidden", 1.0, dtype=attention.dtype)
        outputs.append(attention(hidden, cache, cache.plan({"a": 140})))
        caches.append(cache.digest("a"))
    assert torch.isfinite(outputs[0]).all()
    if profile == "math" or format == "mxfp4" or format == "fp8_block":  # bf16 holds these matrices
        assert torch.equal(*outputs) and caches[0] == caches[1]
    elif layer != 1:  # the factor of nvfp4 is rounded with the matrix in both
        assert float((outputs[0] - outputs[1]).float().norm() / outputs[0].float().norm()) < 2e-2


@pytest.mark.parametrize(
    ("names", "prefix"), [("deepseek", "layers.0.attn"), ("hf", "model.layers.0.self_attn")]
)
def test_scales_of_activations_are_passed_over_and_bytes_may_be_signed(
    tmp_path: Path, names: str, prefix: str
) -> None:
    path = write_synthetic(tmp_path / "x", SMALL, [0], format="nvfp4", names=names) / "model.safetensors"
    tensors = load_file(path)
    before = AttentionWeights.from_state_dict(tensors, prefix).dequantised().state_dict()
    for name in list(tensors):
        if name.endswith(".weight_scale_2"):
            tensors[name.replace("weight_scale_2", "input_scale")] = torch.tensor(0.5)
            tensors[name] = tensors[name].reshape(())
        if tensors[name].dtype == torch.uint8:
            tensors[name] = tensors[name].view(torch.int8)
    save_file(tensors, path)
    for weights in (
        AttentionWeights.from_checkpoint(path, SMALL, 0),
        AttentionWeights.from_state_dict(tensors, prefix),
    ):
        after = weights.dequantised().state_dict()
        assert all(torch.equal(after[name], before[name]) for name in before)


def test_what_does_not_belong_together() -> None:
    codes, scales, factor = group_fp4.quantise_nv(hash_normal((32, 64), 0, "w", 1.0))
    mx = group_fp4.quantise_mx(hash_normal((32, 64), 0, "w", 1.0))
    for parts, message in [
        ((codes, scales), "nvfp4 needs one f32 factor beside its scales"),
        ((*mx, factor), "mxfp4 has no f32 factor beside its scales"),
        ((codes, scales, factor.double()), "the factor is float64"),
        (
            (codes, scales[:, :3].contiguous(), factor),
            r"expected \[32, 4\]: one per 1 x 16 block of \[32, 64\]",
        ),
        ((codes, torch.ones(32, 4), factor), "uint8 with float8_e4m3fn .nvfp4."),
    ]:
        with pytest.raises(WeightsError, match=message):
            QuantisedWeight(*parts)
    with pytest.raises(WeightsError, match=r"wq_b.weight_scale has no wq_b to scale"):
        AttentionWeights.from_state_dict({"wq_b.weight_scale": scales, "wkv": codes})
    with pytest.raises(ValueError, match="24 inputs are not whole groups of 16"):
        group_fp4.quantise_nv(torch.zeros(2, 24))


def test_a_matrix_that_the_format_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"nvfp4 cannot store a matrix \[2048, 24\]: 24 inputs are not whole"
    ):
        write_synthetic(tmp_path / "x", AttentionConfig.preset("tiny"), [0], format="nvfp4")
