"""Layers on an NVIDIA device: streams, graphs, schedules, memory, compilation. Bytes are the suite's."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv4core import AttentionConfig, AttentionWeights, PagedCache, get_backend
from dsv4core.plan import BatchPlan

DEVICE = torch.device("cuda")
LAYERS = (0, 1, 2)
CONFIG = AttentionConfig.preset("tiny", num_attention_heads=64, compress_ratios=(0, 4, 128, 4, 128))
FIELDS = ("swa", "compressed", "state", "indexer", "indexer_state")
REQUESTS = {"a": 140, "b": 31, "c": 257}


def rows(count: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, CONFIG.hidden_size, generator=g).bfloat16()


def layer(index: int) -> Any:
    return get_backend("cuda").attention(CONFIG, index, AttentionWeights.random(CONFIG, index, 3).to(DEVICE))


def cache(layers: list[int]) -> PagedCache:
    return PagedCache.allocate(CONFIG, layers, 4096, DEVICE)


def held(of: PagedCache, index: int) -> list[Tensor]:
    """The caches themselves, as integers: NaN equals itself."""
    found = (getattr(of.layer(index), field) for field in FIELDS)
    return [t if t.dtype == torch.uint8 else t.view(torch.int32) for t in found if t is not None]


@pytest.mark.parametrize("index", (1, 2))
def test_side_streams_race_with_nobody(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 decode steps with delays put into one branch after the other leave the bytes of a step without."""
    attention, store = layer(index), cache([index])
    attention(rows(428, 0).to(DEVICE), store, store.plan(REQUESTS))
    hidden = rows(3, 1).to(DEVICE)
    plan = store.plan(dict.fromkeys(REQUESTS, 1))  # written again and again, always the same rows

    def step() -> list[Tensor]:
        return [attention(hidden, store, plan), *held(store, index)]

    attention.stream_tokens = 0
    want = [t.clone() for t in step()]
    attention.stream_tokens = 256
    delayed = {"at": ""}
    for name in ("close_windows", "select", "latents", "queries"):
        monkeypatch.setattr(attention, name, late(getattr(attention, name), name, delayed))
    for run in range(200):
        delayed["at"] = ("", "close_windows", "select", "latents", "queries")[run % 5]
        assert all(torch.equal(a, b) for a, b in zip(step(), want, strict=True)), (run, delayed["at"])


def late(function: Any, name: str, delayed: dict[str, str]) -> Any:
    def call(*args: Any) -> Any:
        if delayed["at"] == name:
            torch.cuda._sleep(400_000)
        result = function(*args)
        if delayed["at"] == name:
            torch.cuda._sleep(400_000)
        return result

    return call


def test_a_step_of_several_layers_in_one_graph() -> None:
    """Layers share schedules in the capture; replays with other lengths and fewer rows are eager steps."""
    indices = list(range(5))
    layers = [layer(i) for i in indices]
    store, twin = cache(indices), cache(indices)
    first = rows(428, 0).to(DEVICE)
    for each in (store, twin):
        plan = each.plan(REQUESTS)
        for attention in layers:
            attention(first, each, plan)
    for count in (5, 30):  # other lengths for every request
        for each in (store, twin):
            plan = each.plan({"b": count, "a": count + 1})
            for attention in layers:
                attention(rows(2 * count + 1, count).to(DEVICE), each, plan)
    hidden = rows(4, 9).to(DEVICE)
    plan = store.plan({"a": 1, "b": 1, "c": 1}, pad_to=4)
    twin_plan = twin.plan({"a": 1, "b": 1, "c": 1}, pad_to=4)

    def step(each: PagedCache, of: BatchPlan) -> list[Tensor]:
        return [attention(hidden, each, of) for attention in layers]

    want = [t.clone() for t in step(twin, twin_plan)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(store, plan)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step(store, plan)
    for new in (None, {"c": 1, "a": 1}, {"b": 1}):
        if new is not None:
            overwrite(plan, store.plan(new, pad_to=4))
            want = step(twin, twin.plan(new, pad_to=4))
        graph.replay()
        torch.cuda.synchronize()
        live = 3 if new is None else len(new)
        for mine, other in zip(out, want, strict=True):
            assert torch.equal(mine[:live], other[:live])
    for i in indices:
        assert all(torch.equal(a, b) for a, b in zip(held(store, i), held(twin, i), strict=True))


def overwrite(into: BatchPlan, plan: BatchPlan) -> None:
    """The tensors of another step in place; a plan with fewer requests leaves the rest of the tables."""
    for field in fields(into):
        mine, other = getattr(into, field.name), getattr(plan, field.name)
        pairs = [(mine[k], other[k]) for k in mine] if isinstance(mine, dict) else [(mine, other)]
        for a, b in pairs:
            if isinstance(a, Tensor) and isinstance(b, Tensor):
                a[tuple(slice(0, min(m, n)) for m, n in zip(a.shape, b.shape, strict=True))] = b


@pytest.mark.parametrize("index", LAYERS)
def test_steady_state_allocates_nothing_from_the_device(index: int) -> None:
    attention, store = layer(index), cache([index])
    attention(rows(428, 0).to(DEVICE), store, store.plan(REQUESTS))
    hidden = rows(3, 1).to(DEVICE)
    for step in range(12):
        attention(hidden, store, store.plan(dict.fromkeys(REQUESTS, 1)))
        torch.cuda.synchronize()
        reserved = torch.cuda.memory_stats()["segment.all.allocated"]
        if step == 5:
            before = reserved
    assert reserved == before


@pytest.mark.parametrize("compiler", ("aot_eager", "inductor"))
@pytest.mark.parametrize("index", LAYERS)
def test_compiled_layers_are_the_eager_ones(index: int, compiler: str) -> None:
    torch._dynamo.reset()  # three steps of three layers are more graphs than torch keeps of a function
    attention, store, twin = layer(index), cache([index]), cache([index])
    compiled = torch.compile(attention.forward, fullgraph=True, backend=compiler)
    eager = layer(index)
    eager.flash = None  # a compiled layer calls the ops, which give few tokens to another kernel
    for new in (REQUESTS, dict.fromkeys(REQUESTS, 1), {"a": 1, "b": 20}):
        hidden = rows(sum(new.values()), len(new)).to(DEVICE)
        mine = compiled(hidden, store, store.plan(new))
        other = eager(hidden, twin, twin.plan(new))
        assert float((mine - other).float().norm()) <= 4e-3 * float(other.float().norm())
    assert all(torch.equal(a, b) for a, b in zip(held(store, index), held(twin, index), strict=True))


@pytest.mark.parametrize("tokens", (1, 3, 129))
def test_products_in_one_call_are_the_bodies(tokens: int) -> None:
    g = torch.Generator(device=DEVICE).manual_seed(tokens)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device=DEVICE).bfloat16()

    x, weight = noise(tokens, 4096), noise(512, 4096)
    backend = get_backend("cuda")
    wide = backend.linears.linear(weight, torch.bfloat16, out=torch.float32)
    assert wide.choice.kernel.name == "wide"
    mine = wide(x)
    exact = x.double() @ weight.double().T
    assert mine.dtype == torch.float32
    assert float((mine - exact).norm()) <= 1e-5 * float(exact.norm())
    o, wo_a = noise(tokens, 64, 512), noise(8 * 1024, 4096)
    mine = backend.ops.grouped_output_projection(o[:, :32], None, wo_a[:4096], None, groups=4)
    groups = o[:, :32].double().reshape(tokens, 4, -1)
    exact = torch.einsum("tgk,gdk->tgd", groups, wo_a[:4096].double().view(4, 1024, -1))
    assert mine.is_contiguous() and float((mine - exact).norm()) <= 4e-3 * float(exact.norm())
