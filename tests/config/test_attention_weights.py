"""Weights: shapes, statistics, exactness, and reading state dicts in every accepted spelling."""

import hashlib
from dataclasses import replace
from functools import cache

import pytest
import torch

from dsv4core.config import AttentionConfig
from dsv4core.errors import WeightsError
from dsv4core.weights import FLOAT32_NAMES, NORM_NAMES, AttentionWeights, _random, expected_shapes

TINY = AttentionConfig.preset("tiny")
# A model whose tensors are large enough for statistics and small enough for a test.
MIDDLE = AttentionConfig.preset(
    "v4-flash", hidden_size=512, q_lora_rank=128, num_attention_heads=8, o_groups=2, o_lora_rank=64
)
CSA, HCA = 2, 3


@cache
def middle(layer):
    return AttentionWeights.random(MIDDLE, layer, seed=1).state_dict()


def test_shapes_of_flash():
    shapes = expected_shapes(AttentionConfig.preset("v4-flash"), 2)
    assert shapes["wq_b"] == (32768, 1024)
    assert shapes["wo_a"] == (8192, 4096)
    assert shapes["wo_b"] == (4096, 8192)
    assert shapes["compressor.wkv"] == (1024, 4096)
    assert shapes["compressor.ape"] == (4, 1024)
    assert shapes["indexer.wq_b"] == (8192, 1024)
    assert shapes["indexer.weights_proj"] == (64, 4096)
    assert shapes["indexer.compressor.wgate"] == (256, 4096)
    assert shapes["indexer.compressor.norm"] == (128,)
    hca = expected_shapes(AttentionConfig.preset("v4-flash"), 3)
    assert hca["compressor.ape"] == (128, 512)
    assert not any(name.startswith("indexer") for name in hca)
    assert len(expected_shapes(AttentionConfig.preset("v4-flash"), 0)) == 8


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_random_fits_its_layer(layer):
    weights = AttentionWeights.random(TINY, layer, seed=0)
    weights.validate(TINY, layer)
    flat = weights.state_dict()
    assert {name: tuple(t.shape) for name, t in flat.items()} == expected_shapes(TINY, layer)
    for name, tensor in flat.items():
        assert tensor.dtype == (torch.float32 if name in FLOAT32_NAMES else torch.bfloat16)
        assert tensor.is_contiguous()


def test_random_is_deterministic_and_seeded():
    first = AttentionWeights.random(TINY, 1, seed=3).state_dict()
    again = AttentionWeights.random(TINY, 1, seed=3).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    for other in (AttentionWeights.random(TINY, 1, seed=4), AttentionWeights.random(TINY, 2, seed=3)):
        assert not torch.equal(first["wq_a"], other.wq_a)
    assert not torch.equal(first["compressor.wkv"], first["compressor.wgate"])


def test_random_is_pinned():
    digest = hashlib.sha256()
    for name, tensor in sorted(AttentionWeights.random(TINY, 1, seed=0).state_dict().items()):
        digest.update(name.encode() + tensor.float().numpy().tobytes())
    assert digest.hexdigest() == "3c357d8eb619862d8d4c3016ffaa8bfe95a0a92511aa79be3f51fe126dc6a10f"


@pytest.mark.parametrize(
    ("name", "std"),
    [
        ("compressor.wkv", 0.0245 * 8**0.5),
        ("compressor.wgate", 0.0388 * 8**0.5),
        ("compressor.ape", 0.1243),
        ("indexer.compressor.wkv", 0.0293 * 8**0.5),
        ("indexer.compressor.wgate", 0.0512 * 8**0.5),
        ("indexer.compressor.ape", 0.1528),
        ("indexer.weights_proj", 0.2313 * 8**0.5),
        ("indexer.wq_b", 0.108 * 8**0.5),
        ("wq_a", 512**-0.5),
        ("wq_b", 128**-0.5),
        ("wkv", 512**-0.5),
        ("wo_a", 2048**-0.5),
        ("wo_b", 128**-0.5),
    ],
)
def test_deviations(name, std):
    tensor = middle(CSA)[name].double()
    spread = 4 / tensor.numel() ** 0.5
    assert abs(tensor.std() / std - 1) < spread
    assert abs(tensor.mean() / std) < spread


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("compressor.norm", 0.967, 0.193),
        ("indexer.compressor.norm", 0.685, 0.261),
        ("q_norm", 1.0, 0.1),
        ("kv_norm", 1.0, 0.1),
        ("attn_sink", 0.0, 1.0),
    ],
)
def test_norms_and_sinks(name, mean, std):
    shape = (400,) if name == "attn_sink" else (4096,)
    tensor = _random(name, shape, CSA, seed=0).double()
    spread = 5 / tensor.numel() ** 0.5
    assert abs(tensor.mean() - mean) < spread * std + 2**-8
    assert abs(tensor.std() / std - 1) < spread


@pytest.mark.parametrize("layer", [CSA, HCA])
def test_projections_lie_on_a_coarse_grid(layer):
    for name, tensor in middle(layer).items():
        if name in NORM_NAMES:
            grid = tensor.float() * 128
            assert torch.equal(grid, grid.round())
            continue
        x = tensor.float()
        step = next(2.0**k for k in range(5, -20, -1) if torch.equal(x / 2.0**k, (x / 2.0**k).round()))
        assert (x / step).abs().max() <= 127, name
        assert torch.equal(x.bfloat16().float(), x), name


def prefixed(weights, prefix, suffix):
    return {
        prefix + name + ("" if name.endswith(("ape", "attn_sink")) else suffix): tensor
        for name, tensor in weights.state_dict().items()
    }


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize(
    ("prefix", "given"),
    [
        ("", ""),
        ("layers.3.attn.", "layers.3.attn."),
        ("layers.3.attn.", "layers.3.attn"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".weight"])
def test_from_state_dict(layer, prefix, given, suffix):
    weights = AttentionWeights.random(TINY, layer, seed=0)
    tensors = prefixed(weights, prefix, suffix)
    if prefix:
        tensors["layers.4.attn.wq_a"] = torch.zeros(1, dtype=torch.int8)
        tensors["layers.3.attn_norm.weight"] = torch.zeros(1)
    again = AttentionWeights.from_state_dict(tensors, given)
    again.validate(TINY, layer)
    assert (again.compressor is None, again.indexer is None) == (layer == 0, layer != 1)
    for name, tensor in weights.state_dict().items():
        assert again.state_dict()[name] is tensor


def test_from_state_dict_keeps_types():
    drawn = AttentionWeights.random(TINY, 1, seed=0).state_dict()
    tensors = {name: tensor.float() for name, tensor in drawn.items()}
    tensors["wq_a"] = tensors["wq_a"].bfloat16()
    weights = AttentionWeights.from_state_dict(tensors)
    assert (weights.wq_a.dtype, weights.wq_b.dtype) == (torch.bfloat16, torch.float32)


def edited(layer, remove=(), **changes):
    drawn = AttentionWeights.random(TINY, layer, seed=0).state_dict()
    tensors = {name: tensor for name, tensor in drawn.items() if name not in remove}
    return {**tensors, **{name.replace("__", "."): value for name, value in changes.items()}}


@pytest.mark.parametrize(
    ("tensors", "prefix", "message"),
    [
        (edited(1, remove=("wq_a", "compressor.ape")), "", "lack wq_a, compressor.ape; found q_norm"),
        (edited(1, remove=("indexer.compressor.norm",)), "", "lack indexer.compressor.norm"),
        (edited(0, wq_a__scale=torch.zeros(1)), "", "wq_a is bfloat16 but has scales, which belong"),
        (edited(0, fused_wqa_wkv=torch.zeros(1)), "", "fused_wqa_wkv is not a tensor"),
        (edited(0, wq_a__weight=torch.zeros(1)), "", "wq_a.weight is there twice"),
        (
            edited(0, wq_b=torch.zeros(4, 4).to(torch.float8_e4m3fn)),
            "",
            "wq_b is float8_e4m3fn without scales",
        ),
        (edited(0, wkv=torch.zeros(4).half()), "", "wkv is float16"),
        (
            {"layers.0.attn.wq_a.weight": torch.zeros(1)},
            "layers.7.attn",
            r"begins with 'layers.7.attn.'; there are 'layers.0.attn.'",
        ),
        (
            {"model.layers.0.self_attn.q_a_proj.weight": torch.zeros(1)},
            "model.layers.7.self_attn.",
            r"begins with 'model.layers.7.self_attn.'; there are 'model.layers.0.self_attn.'",
        ),
        ({}, "", "no name holds wq_a or q_a_proj"),
    ],
)
def test_broken_state_dicts_are_refused(tensors, prefix, message):
    with pytest.raises(WeightsError, match=message):
        AttentionWeights.from_state_dict(tensors, prefix)


def test_validate_lists_every_difference():
    weights = AttentionWeights.random(TINY, 1, seed=0)
    with pytest.raises(WeightsError, match=r"layer 0 \(swa, ratio 0\): compressor.wkv is not.*indexer.wq_b"):
        weights.validate(TINY, 0)
    with pytest.raises(WeightsError, match=r"\(hca, ratio 128\).*compressor.ape is \[4, 1024\], expected"):
        weights.validate(TINY, 2)
    with pytest.raises(WeightsError, match=r"compressor\.wkv is missing"):
        AttentionWeights.random(TINY, 0, seed=0).validate(TINY, 1)


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("wq_a", torch.float8_e4m3fn, r"wq_a is float8_e4m3fn without scales"),
        ("wkv", torch.int8, r"wkv is int8 without scales"),
        ("wo_b", torch.float16, r"wo_b is float16; only bfloat16 and float32"),
        ("q_norm", torch.float64, r"q_norm is float64; only bfloat16 and float32"),
    ],
)
def test_validate_refuses_codes_taken_for_values(name, dtype, message):
    weights = AttentionWeights.random(TINY, 0, seed=0)
    with pytest.raises(WeightsError, match=message):
        replace(weights, **{name: getattr(weights, name).to(dtype)}).validate(TINY, 0)


def test_prepared_casts_projections_only():
    drawn = AttentionWeights.random(TINY, 1, seed=0).state_dict()
    full = {name: tensor.float() for name, tensor in drawn.items()}
    full["compressor.ape"] = full["compressor.ape"].bfloat16()
    weights = AttentionWeights.from_state_dict(full)
    flat = weights.prepared(torch.bfloat16).state_dict()
    for name, tensor in flat.items():
        kept = name in NORM_NAMES or name in FLOAT32_NAMES
        assert tensor.dtype == (torch.float32 if kept else torch.bfloat16), name
    math = AttentionWeights.random(TINY, 1, seed=0).prepared(torch.float32).state_dict()
    assert math["q_norm"].dtype == torch.bfloat16
    assert math["wq_a"].dtype == torch.float32
    assert torch.equal(math["wq_a"], full["wq_a"])


def test_to_device():
    weights = AttentionWeights.random(TINY, 1, seed=0).to("meta")
    assert weights.indexer is not None
    assert weights.indexer.compressor.wkv.device.type == "meta"
