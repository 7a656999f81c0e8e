"""fp8 blocks: the codec, the ops on checkpoint operands, and a whole layer against its dequantised self."""

from __future__ import annotations

import pytest
import torch

from dsv4core.cache import PagedCache
from dsv4core.config import AttentionConfig
from dsv4core.errors import WeightsError
from dsv4core.linear import Linear, QuantisedWeight, SplitLinear
from dsv4core.numerics import block_fp8
from dsv4core.selection import get_backend
from dsv4core.synthetic import hash_normal
from dsv4core.tensor_names import RELEASED
from dsv4core.weights import AttentionWeights

BF16 = torch.bfloat16
# Rows and columns that end inside a block; q_lora_rank a multiple of 128, so that wq_a and wkv can be joined.
SMALL = {"hidden_size": 192, "q_lora_rank": 128, "o_lora_rank": 72, "compress_ratios": (0, 4, 128)}


def quantised(weights: AttentionWeights, scale: str) -> AttentionWeights:
    tensors = weights.state_dict()
    for name in RELEASED:
        if name in tensors:
            tensors[name], tensors[f"{name}.scale"] = block_fp8.quantise(tensors[name], scale)
    return AttentionWeights.from_state_dict(tensors)


@pytest.mark.parametrize("scale", ["ue8m0", "f32"])
@pytest.mark.parametrize("shape", [(256, 384), (130, 200), (1, 1), (128, 129)])
def test_codec(shape: tuple[int, int], scale: str) -> None:
    weight = hash_normal(shape, 0, "w", 1.0)
    codes, scales = block_fp8.quantise(weight, scale)
    assert tuple(scales.shape) == block_fp8.scale_shape(*shape)
    assert (codes.dtype, scales.dtype) == (
        torch.float8_e4m3fn,
        {"ue8m0": torch.float8_e8m0fnu, "f32": torch.float32}[scale],
    )
    factor = block_fp8.scale_values(scales).repeat_interleave(128, 0).repeat_interleave(128, 1)
    factor = factor[: shape[0], : shape[1]]
    back = block_fp8.dequantise(codes, scales)
    assert torch.equal(back, codes.float() * factor)
    error, largest = (back - weight).abs(), weight.abs().amax()
    assert (error <= torch.maximum(weight.abs() * 2**-4, factor * 2**-10)).all()
    assert 224 * (1 if scale == "ue8m0" else 2) <= codes.float().abs().max() <= 448 or largest == 0
    rounded = block_fp8.dequantise(codes, scales, BF16)
    assert torch.equal(rounded, back.to(BF16))
    if scale == "ue8m0":
        assert torch.equal(rounded.float(), back)  # exact: four bits times a power of two


def test_zero_blocks_and_unknown_scales() -> None:
    codes, scales = block_fp8.quantise(torch.zeros(130, 130), "ue8m0")
    assert not block_fp8.dequantise(codes, scales).any()
    with pytest.raises(ValueError, match="'ue8m0' or 'f32'"):
        block_fp8.quantise(torch.zeros(1, 1), "e8")


@pytest.mark.parametrize("kind", ["ue8m0", "u8", "f32"])
@pytest.mark.parametrize(("rank", "inputs"), [(1024, 512), (72, 192)])
def test_grouped_output_projection(kind: str, rank: int, inputs: int) -> None:
    groups, tokens = 2, 5
    o = hash_normal((tokens, 2, 512), 0, "o", 1.0, dtype=BF16)
    weight = hash_normal((groups * rank, 512), 0, f"w{inputs}", 0.02)
    codes, scales = block_fp8.quantise(weight, "f32" if kind == "f32" else "ue8m0")
    scales = scales.view(torch.uint8) if kind == "u8" else scales
    got = get_backend("cpu").ops.grouped_output_projection(o, None, codes, scales, groups=groups)
    exact = block_fp8.dequantise(codes, scales).double().view(groups, rank, 512)
    exact = torch.einsum("tgi,goi->tgo", o.double().view(tokens, groups, 512), exact)
    assert float((got.double() - exact).norm() / exact.norm()) <= 4e-3


@pytest.mark.parametrize("scale", ["ue8m0", "f32"])
def test_rows_are_independent(scale: str) -> None:
    x = hash_normal((33, 320), 0, "x", 1.0, dtype=BF16)
    weight = QuantisedWeight(*block_fp8.quantise(hash_normal((200, 320), 0, "w", 0.1), scale))
    for quantise in (False, True):
        projection = get_backend("cpu").linears.linear(weight, BF16, quantise=quantise)
        whole = projection(x)
        for tokens in (1, 2, 7, 8, 9, 32):
            assert torch.equal(projection(x[:tokens]), whole[:tokens])
            assert torch.equal(projection(x[-tokens:]), whole[-tokens:])


@pytest.mark.parametrize("scale", ["ue8m0", "f32"])
@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("profile", ["vllm", "math"])
def test_a_layer_on_stored_weights_equals_the_widened_one(layer: int, scale: str, profile: str) -> None:
    outputs, caches = [], []
    for storage in ("checkpoint", "widened"):
        config = AttentionConfig.preset("tiny", profile=profile, weight_storage=storage, **SMALL)
        weights = quantised(AttentionWeights.random(config, layer), scale)
        attention = get_backend("cpu").attention(config, layer, weights)
        stored = "fp8_block" if storage == "checkpoint" else "bf16"
        assert (attention.wq_b.problem.format, attention.wo_a.problem.format) == (stored, stored)
        cache = PagedCache.allocate(config, [layer], 300)
        hidden = hash_normal((140, 192), 0, "hidden", 1.0, dtype=attention.dtype)
        steps = [
            attention(hidden[:139], cache, cache.plan({"a": 139})),
            attention(hidden[139:], cache, cache.plan({"a": 1})),
        ]
        outputs.append(torch.cat(steps))
        caches.append(cache.digest("a"))
    assert torch.isfinite(outputs[0]).all()
    if scale == "ue8m0" or profile == "math":
        assert torch.equal(*outputs) and caches[0] == caches[1]
    elif layer != 1:  # the widened matrix is rounded to bf16; a top-k of 4 entries may then choose others
        assert float((outputs[0] - outputs[1]).float().norm() / outputs[0].float().norm()) < 2e-2


@pytest.mark.parametrize(("rows", "kinds", "joined"), [
    ((256, 130), ("ue8m0", "ue8m0"), True), ((256, 130), ("f32", "f32"), True),
    ((130, 256), ("f32", "f32"), False),
    ((256, 256), ("f32", "ue8m0"), False), ((256, 256), ("bf16", "f32"), False),
    ((130, 7), ("bf16", "bf16"), True),
])  # fmt: skip
def test_joined(rows: tuple[int, int], kinds: tuple[str, str], joined: bool) -> None:
    linears, x = get_backend("cpu").linears, hash_normal((5, 200), 0, "x", 1.0, dtype=BF16)
    parts = []
    for i, (n, kind) in enumerate(zip(rows, kinds, strict=True)):
        weight = hash_normal((n, 200), 0, f"w{i}", 0.1, dtype=BF16)
        parts.append(weight if kind == "bf16" else QuantisedWeight(*block_fp8.quantise(weight, kind)))
    dense = torch.cat(
        [p.double() if isinstance(p, torch.Tensor) else p.dequantised().double() for p in parts]
    )
    exact = x.double() @ dense.T
    for dtype, bound in ((BF16, 4e-3), (torch.float32, 2e-6)):
        both = linears.joined(*parts, x=BF16, out=dtype)
        assert isinstance(both, Linear if joined else SplitLinear)
        got = both(x)
        assert got.dtype == dtype and float((got.double() - exact).norm() / exact.norm()) <= bound


def test_state_dict_and_dequantised_round_trip() -> None:
    config = AttentionConfig.preset("tiny", **SMALL)
    weights = quantised(AttentionWeights.random(config, 1), "ue8m0")
    weights.validate(config, 1)
    flat = weights.state_dict()
    assert "wq_a.scale" in flat and "compressor.wkv.scale" not in flat
    again = AttentionWeights.from_state_dict(flat, "").state_dict()
    assert all(again[name] is flat[name] for name in flat)
    dense = weights.dequantised()
    assert isinstance(dense.wo_a, torch.Tensor) and dense.wo_a.dtype == torch.float32
    assert weights.to("meta").wq_a.device.type == "meta"
    bf16 = weights.prepared(widen=True).state_dict()
    assert bf16["wo_b"].dtype == BF16 and bf16["attn_sink"].dtype == torch.float32


@pytest.mark.parametrize(("codes", "scales", "message"), [
    (torch.zeros(4, 4), torch.ones(1, 1), r"codes are float32 \[4, 4\].*expected.*float8_e4m3fn"),
    (torch.zeros(256, 4, dtype=torch.uint8).view(torch.float8_e4m3fn), torch.ones(1, 1),
     r"expected \[2, 1\]: one per 128 x 128 block"),
    (torch.zeros(4, 4, dtype=torch.uint8).view(torch.float8_e4m3fn), torch.ones(1, 1).half(),
     "scales are float16"),
])  # fmt: skip
def test_pairs_that_do_not_fit(codes: torch.Tensor, scales: torch.Tensor, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        QuantisedWeight(codes, scales)
