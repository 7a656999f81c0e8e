"""The layer over FlashMLA's stand-in: pages and outputs of the CPU's, schedules, streams' bookkeeping."""

from __future__ import annotations

import ctypes
import gc
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_flash_mla import FakeFlashMLA
from torch import Tensor

import dsv4core_cuda.backend as backend_module
from dsv4core import AttentionConfig, AttentionWeights, PagedCache
from dsv4core.backend import Backend
from dsv4core_cpu.backend import CpuBackend
from dsv4core_cpu.plugin import SPEC as CPU
from dsv4core_cuda import streams
from dsv4core_cuda.backend import CudaBackend
from dsv4core_cuda.cutedsl import _measured, install, sparse_indexer
from dsv4core_cuda.cutedsl._build import Program
from dsv4core_cuda.flashmla import FlashMLA
from dsv4core_cuda.flashmla_library import FlashMLAModule
from dsv4core_cuda.plugin import SPEC

CONFIG = AttentionConfig.preset("tiny")
FIELDS = ("swa", "compressed", "state", "indexer", "indexer_state")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeFlashMLA:
    monkeypatch.setenv("DSV4CORE_CHECK", "0")  # checked mode goes through the ops
    return FakeFlashMLA()


def backend(fake: FakeFlashMLA, monkeypatch: pytest.MonkeyPatch) -> Backend:
    flash = FlashMLA(FlashMLAModule(fake.module()), (9, 0), fewest=1)
    monkeypatch.setattr(backend_module, "_on_device", lambda fewest, invariant: (flash, ""))
    monkeypatch.setattr(backend_module, "interpreted", lambda: False)
    provider = CudaBackend({})
    provider.device_type = "cpu"  # where the fake and interpreted kernels compute
    return Backend(SPEC, provider, provider.ops)


def reference() -> Backend:
    provider = CpuBackend({})
    return Backend(CPU, provider, provider.ops)


def rows(count: int, seed: int) -> Tensor:
    return torch.randn(count, CONFIG.hidden_size, generator=torch.Generator().manual_seed(seed)).bfloat16()


def steps(layer: int) -> list[dict[str, int]]:
    """Prefill, decode, a mixed step, decode with a newcomer; only ratio 128 needs long ones for an entry."""
    long = 129 if layer == 2 else 12
    return [{"a": long, "b": 5}, {"a": 1, "b": 1}, {"b": 1, "a": 9}, {"a": 1, "b": 1, "c": 1}]


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_layer_is_the_layer_of_the_cpu(
    layer: int, fake: FakeFlashMLA, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = AttentionWeights.random(CONFIG, layer, 3)
    outputs, pages = [], []
    for made in (backend(fake, monkeypatch), reference()):
        attention = made.attention(CONFIG, layer, weights)
        cache = PagedCache.allocate(CONFIG, [layer], 512, torch.device("cpu"))
        parts = [
            attention(rows(sum(new.values()), i), cache, cache.plan(new))
            for i, new in enumerate(steps(layer))
        ]
        outputs.append(torch.cat(parts).float())
        pages.append(cache.layer(layer))
    mine, other = outputs
    assert float((mine - other).norm()) <= 4e-3 * float(other.norm())
    for field in FIELDS:
        own, reference_ = (getattr(p, field) for p in pages)
        assert (own is None) == (reference_ is None)
        assert own is None or torch.equal(own.view(torch.uint8), reference_.view(torch.uint8)), field
    assert {call["q"].shape[-2] for call in fake.calls} == {64}
    assert len(fake.calls) == 5  # one a step, two in the mixed one
    assert all((call["sink"][4:] == -torch.inf).all() for call in fake.calls)


def test_layers_of_a_kind_share_a_schedule(fake: FakeFlashMLA, monkeypatch: pytest.MonkeyPatch) -> None:
    config = AttentionConfig.preset("tiny", compress_ratios=(0, 4, 128, 4, 128, 0))
    made = backend(fake, monkeypatch)
    layers = [made.attention(config, i, AttentionWeights.random(config, i, 1)) for i in range(6)]
    cache = PagedCache.allocate(config, list(range(6)), 1024, torch.device("cpu"))
    plan = cache.plan({"a": 9, "b": 3})
    for layer in layers:
        layer(rows(12, 0), cache, plan)
    assert not fake.metas, "prefill has no schedule"
    plan = cache.plan({"a": 1, "b": 1})
    for layer in layers:
        layer(rows(2, 1), cache, plan)
    assert len(fake.metas) == 3
    plan.swa_lens.fill_(3)  # the same tensors, another step: the stand-in refuses a schedule of other lengths
    layers[0](rows(2, 1), cache, plan)
    assert len(fake.metas) == 4
    kept = made.provider.schedules
    del plan
    gc.collect()
    assert not len(kept._by_plan)


def test_steps_in_inference_mode(fake: FakeFlashMLA, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers share a schedule there too; lengths that torch counts no writes of are shared by nobody."""
    config = AttentionConfig.preset("tiny", compress_ratios=(0, 0))
    made = backend(fake, monkeypatch)
    layers = [made.attention(config, i, AttentionWeights.random(config, i, 1)) for i in range(2)]
    cache = PagedCache.allocate(config, [0, 1], 512, torch.device("cpu"))
    with torch.inference_mode():
        plan = cache.plan({"a": 1})
        for layer in layers:
            layer(rows(1, 1), cache, plan)
        assert len(fake.metas) == 1
        plan.swa_lens.fill_(1)
        layers[0](rows(1, 1), cache, plan)
        assert len(fake.metas) == 2
        uncounted = replace(plan, swa_lens=plan.swa_lens.clone())
        for layer in layers:
            layer(rows(1, 1), cache, uncounted)
        assert len(fake.metas) == 4


def test_side_streams_belong_to_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "new_stream", lambda device: (device, object()))
    held = streams.SideStreams()
    mains = [SimpleNamespace(device=torch.device("cuda", i), stream_id=0) for i in (0, 1)]
    pairs = [held.of(main) for main in mains]  # pyright: ignore[reportArgumentType]
    assert [pair[0][0].index for pair in pairs] == [0, 1]  # pyright: ignore[reportIndexIssue]
    assert held.of(mains[0]) is pairs[0]  # pyright: ignore[reportArgumentType]


def test_a_hole_in_a_table_leaves_the_lengths_of_the_plan(
    fake: FakeFlashMLA, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = backend(fake, monkeypatch)
    layer = made.attention(CONFIG, 1, AttentionWeights.random(CONFIG, 1, 1))
    cache = PagedCache.allocate(CONFIG, [1], 1024, torch.device("cpu"))
    layer(rows(60, 0), cache, cache.plan({"a": 60}))
    plan = cache.plan({"a": 1})
    plan.tables["c4"].fill_(-1)
    layer(rows(1, 1), cache, plan)
    call: dict[str, Any] = fake.calls[-1]
    assert call["extra_lens"].tolist() == [4] and (call["extra_slots"] == -1).all()


def test_checked_mode_goes_through_the_op(fake: FakeFlashMLA, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV4CORE_CHECK", "1")
    made = backend(fake, monkeypatch)
    layer = made.attention(CONFIG, 0, AttentionWeights.random(CONFIG, 0, 1))
    cache = PagedCache.allocate(CONFIG, [0], 512, torch.device("cpu"))
    plan = cache.plan({"a": 1})
    layer(rows(1, 0), cache, plan)
    assert len(fake.calls) == 1
    assert fake.calls[0]["slots"].data_ptr() != plan.swa_slots.data_ptr()


def test_a_layer_chooses_entries_by_the_kernel_that_measured_faster(
    fake: FakeFlashMLA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table of an H100 decides; the kernel's stand-in chooses nothing."""
    table = tuple(row for row in _measured.rows("sm_90a") if row.op == "sparse_indexer")
    launched: list[tuple[str, int]] = []

    def on(self: Program, device: int | None) -> Any:
        def launch(grid: tuple[int, int, int], *values: int) -> None:
            if self.kernel == "sparse_indexer":
                launched.append((self.kernel, grid[1]))
                ctypes.memset(values[7], 255, grid[1] * values[-1])  # -1 in every place

        return launch

    monkeypatch.setattr(Program, "on", on)
    monkeypatch.setattr(sparse_indexer, "processors", lambda device: 132)
    for name, value in (("rows", table), ("reason_against", ""), ("wrong", "")):
        monkeypatch.setattr(install, name, lambda *_, value=value: value)
    monkeypatch.setattr(CudaBackend, "_cutedsl", lambda self: install.replaced(self.ops, "auto", (9, 0)))
    made = backend(fake, monkeypatch)
    assert made.ops.provenance["sparse_indexer"].startswith("cutedsl (index_fp8, ")
    layer = made.attention(CONFIG, 1, AttentionWeights.random(CONFIG, 1, 1))
    cache = PagedCache.allocate(CONFIG, [1], 1024, torch.device("cpu"))
    layer(rows(80, 0), cache, cache.plan({"a": 80}))
    layer(rows(2, 1), cache, cache.plan({"a": 1, "b": 1}))
    assert launched == [("sparse_indexer", 80), ("sparse_indexer", 2)]
    assert fake.calls[-1]["extra_lens"].tolist() == [0, 0] or (fake.calls[-1]["extra_slots"] == -1).all()
