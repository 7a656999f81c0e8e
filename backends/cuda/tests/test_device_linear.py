"""Layers with quantised projections on an NVIDIA device: side streams, graphs, several streams at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from test_device_layer import held, late
from torch import Tensor

from dsv4core import AttentionConfig, AttentionWeights, PagedCache, get_backend
from dsv4core.backend import Backend
from dsv4core.errors import WeightsError
from dsv4core.linear import Linear, Problem, QuantisedWeight
from dsv4core.linear.kernel import Choice
from dsv4core.linear.triton_kernel import TritonLinear
from dsv4core.numerics import block_fp8, group_fp4
from dsv4core.runtime import captured
from dsv4core.samples import Size, sample
from dsv4core.tensor_names import FACTOR, QUANTISABLE, SCALE
from dsv4core_cuda.backend import CudaBackend
from dsv4core_cuda.linear import FewTokens, kernels
from dsv4core_cuda.plugin import SPEC

DEVICE = torch.device("cuda")
CONFIG = AttentionConfig.preset(
    "tiny", num_attention_heads=64, hidden_size=4096, q_lora_rank=1024, o_groups=8, o_lora_rank=256,
    compress_ratios=(0, 4, 128),
)  # fmt: skip
"""Sums as long as those of V4-Flash: products of few tokens are split."""
FORMATS: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "fp8_block": lambda w: block_fp8.quantise(w, "ue8m0"),
    "nvfp4": group_fp4.quantise_nv,
    "mxfp4": group_fp4.quantise_mx,
}
CASES = [(index, format) for index in (1, 2) for format in FORMATS]
PER_TOKEN = ("q", "swa_slots", "swa_lens", "extra_slots", "extra_lens", "indices", "lens", "out")
FIRST, STEP = {"a": 140, "b": 31, "c": 257}, {"a": 1, "b": 1, "c": 1}


@cache
def layer(index: int, format: str) -> Any:
    """A layer all of whose projections are stored in a format, and taken by a kernel for it."""
    attention = get_backend("cuda").attention(CONFIG, index, stored(index, format))
    assert attention.wo_b.choice.kernel.name == "triton"
    return attention


def stored(index: int, format: str) -> AttentionWeights:
    """Random weights in a format."""
    tensors = AttentionWeights.random(CONFIG, index, 3).to(DEVICE).state_dict()
    for name in QUANTISABLE:
        if name in tensors:
            parts = FORMATS[format](tensors[name].float())
            tensors |= dict(zip((name, name + SCALE, name + FACTOR), parts, strict=False))
    return AttentionWeights.from_state_dict(tensors)


def rows(count: int, seed: int) -> Tensor:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return torch.randn(count, CONFIG.hidden_size, generator=generator, device=DEVICE).bfloat16()


def filled(attention: Any, index: int) -> PagedCache:
    store = PagedCache.allocate(CONFIG, [index], 4096, DEVICE)
    attention(rows(428, 0), store, store.plan(FIRST))
    return store


@pytest.mark.parametrize(("index", "format"), CASES)
def test_side_streams_change_nothing(index: int, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attention = layer(index, format)
    store, hidden = filled(attention, index), rows(3, 1)
    plan = store.plan(STEP)

    def step() -> list[Tensor]:
        return [attention(hidden, store, plan), *held(store, index)]

    monkeypatch.setattr(attention, "stream_tokens", 0)
    want = [t.clone() for t in step()]
    monkeypatch.setattr(attention, "stream_tokens", 256)
    delayed = {"at": ""}
    for name in ("close_windows", "select", "latents", "queries"):
        monkeypatch.setattr(attention, name, late(getattr(attention, name), name, delayed))
    for run in range(50):
        delayed["at"] = ("", "close_windows", "select", "latents", "queries")[run % 5]
        assert all(torch.equal(a, b) for a, b in zip(step(), want, strict=True)), (run, delayed["at"])


@pytest.mark.parametrize(("index", "format"), CASES)
def test_a_captured_step_is_the_eager_one(index: int, format: str) -> None:
    """Captured twice on one stream, replayed in turns, an eager step between: side streams in all of them."""
    attention = layer(index, format)
    store, hidden = filled(attention, index), rows(3, 1)
    plan = store.plan(STEP)
    want = attention(hidden, store, plan).clone()
    pages = [t.clone() for t in held(store, index)]
    graphs = [captured(lambda: attention(hidden, store, plan), DEVICE) for _ in range(2)]
    for run in range(12):
        replay, out = graphs[run % 2]
        out.fill_(torch.nan)
        replay()
        assert torch.equal(out, want), run
        assert torch.equal(attention(hidden, store, plan), want), run
    assert all(torch.equal(a, b) for a, b in zip(held(store, index), pages, strict=True))


@pytest.mark.parametrize("format", FORMATS)
def test_one_layer_on_two_streams_at_once(format: str) -> None:
    """Sums in parts count on zeros of their own stream."""
    attention = layer(2, format)
    stores = [filled(attention, 2) for _ in range(2)]
    plans, hidden = [store.plan(STEP) for store in stores], [rows(3, seed) for seed in (1, 2)]
    want = [attention(h, s, p).clone() for h, s, p in zip(hidden, stores, plans, strict=True)]
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    outs: list[list[Tensor]] = [[], []]
    for _ in range(50):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                outs[i].append(attention(hidden[i], stores[i], plans[i]))
    torch.cuda.synchronize()
    for found, right in zip(outs, want, strict=True):
        assert all(torch.equal(out, right) for out in found)


def test_attention_that_may_not_depend_on_its_batch() -> None:
    """64 heads, DSV4CORE_CUDA_BATCH_INVARIANT=1: a token has its bits alone and in batches of any size."""
    ops = CudaBackend({"batch_invariant": "1"}).ops
    size = Size(tokens=65, context=640, config=AttentionConfig.preset("v4-flash"))
    for op in ("sparse_decode", "sparse_prefill"):
        given = sample(op, size, DEVICE)
        lse = ops[op].function(**given)
        for tokens in (1, 2, 16, 17, 33, 64):
            few = {k: v[:tokens].clone() if k in PER_TOKEN else v for k, v in given.items()}
            assert torch.equal(ops[op].function(**few), lse[:tokens]), (op, tokens)
            assert torch.equal(few["out"], given["out"][:tokens]), (op, tokens)


PRODUCTS = [(1536, 4096), (8192, 1024), (384, 2048)]
"""Outputs and inputs: clusters of eight, two and four blocks."""


def few(outputs: int, inputs: int, scales: str = "ue8m0") -> Linear:
    """A projection by the kernel of few tokens, with every code and scales of several sizes."""
    generator = torch.Generator(DEVICE).manual_seed(outputs)
    codes = torch.randint(0, 256, (outputs, inputs), generator=generator, device=DEVICE).to(torch.uint8)
    codes[codes & 0x7F == 0x7F] = 0
    exponents = torch.randint(117, 127, (outputs // 128, inputs // 128), generator=generator, device=DEVICE)
    factors = exponents.to(torch.uint8).view(torch.float8_e8m0fnu)
    if scales == "f32":
        factors = 1.5 * torch.exp2(exponents.float() - 127)
    weight = QuantisedWeight(codes.view(torch.float8_e4m3fn), factors)
    kernel, problem = FewTokens(TritonLinear(), "cutedsl"), Problem.of(weight, torch.bfloat16, torch.bfloat16)
    if (reason := kernel.supports(problem)) is not True:
        pytest.skip(reason)
    linear = Linear(problem, Choice(kernel, ()), kernel.prepare(weight, problem))
    assert linear.prepared[1], "the kernel runs here"
    return linear


def activations(tokens: int, inputs: int) -> Tensor:
    """Rows that are longer in memory, with NaN behind them."""
    generator = torch.Generator(DEVICE).manual_seed(tokens)
    x = torch.randn(tokens, inputs + 32, generator=generator, device=DEVICE).bfloat16()
    x[:, inputs:] = torch.nan
    return x[:, :inputs]


@pytest.mark.parametrize("scales", ["ue8m0", "f32"])
@pytest.mark.parametrize(("outputs", "inputs"), PRODUCTS)
def test_products_of_few_tokens_are_within_a_rounding_of_float64(
    outputs: int, inputs: int, scales: str
) -> None:
    linear = few(outputs, inputs, scales)
    weight = linear.prepared[0]
    factors = weight.scales.float().double().repeat_interleave(128, 0).repeat_interleave(128, 1)
    matrix = weight.weight.double() * factors
    for tokens in (1, 2, 7, 8, 9, 16, 17, 31, 33, 64):
        x = activations(tokens, inputs)
        exact, size = x.double() @ matrix.mT, x.double().abs() @ matrix.abs().mT
        error = (linear(x).double() - exact).abs()
        assert bool((error <= exact.abs() * 2**-8 + size * 2**-19).all()), tokens


@pytest.mark.parametrize(("outputs", "inputs"), PRODUCTS)
def test_a_row_of_few_tokens_has_its_bits_in_any_batch(outputs: int, inputs: int) -> None:
    """In a graph, at odd addresses and on two streams at once too."""
    linear, x = few(outputs, inputs), activations(64, inputs)
    replay, out = captured(lambda: linear(x), DEVICE)
    out.fill_(torch.nan)
    replay()
    whole = out.clone()
    for tokens in (1, 3, 8, 15, 16, 32, 63):
        assert torch.equal(linear(x[:tokens]), whole[:tokens]), tokens
    odd = torch.zeros(64, inputs + 1, dtype=torch.bfloat16, device=DEVICE)
    odd[:, 1:] = x
    assert torch.equal(linear(odd[:, 1:]), whole)
    streams = [torch.cuda.Stream() for _ in range(2)]
    outs: list[Tensor] = []
    torch.cuda.synchronize()
    for _ in range(100):
        for stream in streams:
            with torch.cuda.stream(stream):
                outs.append(linear(x))
    torch.cuda.synchronize()
    assert all(torch.equal(found, whole) for found in outs)


def test_products_of_few_tokens_have_their_limits() -> None:
    """None and more than 64 tokens are Triton's; NaN among codes is refused."""
    linear, x = few(1536, 4096), activations(65, 4096)
    assert linear(x[:0]).shape == (0, 1536)
    theirs, ours = linear(x)[:64].float(), linear(x[:64]).float()
    assert float((ours - theirs).norm() / theirs.norm()) < 4e-3
    weight = linear.prepared[0]
    bad = QuantisedWeight(weight.weight.clone(), weight.scales)
    bad.weight.view(torch.uint8)[3, 5] = 0x7F
    with pytest.raises(WeightsError, match="NaN"):
        bad.check_values()  # before any kernel prepares it


def test_a_layer_of_products_of_few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every projection that the kernel can take is its; outputs are Triton's within some roundings."""
    few(1536, 4096)
    monkeypatch.setenv("DSV4CORE_CUDA_KERNELS", "cutedsl")
    provider = CudaBackend({})
    backend = Backend(SPEC, provider, provider.ops, kernels())
    outs: list[Tensor] = []
    for names in ("few_tokens,triton,op", "triton,op"):
        monkeypatch.setenv("DSV4CORE_LINEAR", names)
        attention = backend.attention(CONFIG, 1, stored(1, "fp8_block"))
        assert attention.wq_b.choice.kernel.name == names.partition(",")[0]
        store = PagedCache.allocate(CONFIG, [1], 4096, DEVICE)
        outs.append(attention(rows(31, 5), store, store.plan({"a": 31})).float())
    ours, theirs = outs
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-2
