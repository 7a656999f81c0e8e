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
from dsv4core.numerics import block_fp8, group_fp4
from dsv4core.runtime import captured
from dsv4core.samples import Size, sample
from dsv4core.tensor_names import FACTOR, QUANTISABLE, SCALE
from dsv4core_cuda.backend import CudaBackend

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
    tensors = AttentionWeights.random(CONFIG, index, 3).to(DEVICE).state_dict()
    for name in QUANTISABLE:
        if name in tensors:
            parts = FORMATS[format](tensors[name].float())
            tensors |= dict(zip((name, name + SCALE, name + FACTOR), parts, strict=False))
    weights = AttentionWeights.from_state_dict(tensors)
    attention = get_backend("cuda").attention(CONFIG, index, weights)
    assert attention.wo_b.choice.kernel.name == "triton"
    return attention


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
