"""The backend as a whole: what its probe says, where its ops come from, a layer against the CPU backend."""

from __future__ import annotations

import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import dsv4core_xpu.plugin as plugin
from dsv4core import AttentionConfig, AttentionWeights, PagedCache, probe
from dsv4core.backend import Backend
from dsv4core.kernels.triton import portable
from dsv4core.ops import OPS
from dsv4core.plan import Limits
from dsv4core.samples import Size, sample
from dsv4core.selection import Request, select
from dsv4core.spec import Availability, Code
from dsv4core_cpu.backend import CpuBackend
from dsv4core_cpu.plugin import SPEC as CPU
from dsv4core_xpu.backend import XpuBackend, device_type


@pytest.fixture(scope="module")
def backends() -> tuple[Backend, Backend]:
    """The backend under the interpreter and the CPU's."""
    own, other = XpuBackend({}), CpuBackend({})
    return Backend(plugin.SPEC, own, own.ops), Backend(CPU, other, other.ops)


ARC = SimpleNamespace(name="Intel(R) Arc(TM) B580 Graphics", driver_version="1.6.33", has_fp64=True)


def fake_torch(*, cuda: bool = False, xpus: int = 0) -> ModuleType:
    module = ModuleType("torch")
    module.__dict__.update(
        __version__="2.99.0",
        version=SimpleNamespace(cuda="13.0" if cuda else None, hip=None, xpu=None if cuda else "2026"),
        cuda=SimpleNamespace(is_available=lambda: cuda),
        xpu=SimpleNamespace(device_count=lambda: xpus, get_device_properties=lambda _: ARC),
    )
    return module


@pytest.mark.parametrize(
    ("environment", "torch_module", "ok", "words"),
    [
        ({"TRITON_INTERPRET": "1"}, fake_torch(), True, "Triton's interpreter"),
        (
            {},
            fake_torch(xpus=2),
            True,
            "sees 2 XPU devices: Intel(R) Arc(TM) B580 Graphics, driver 1.6.33, fp64, fp8 converted in",
        ),
        ({}, fake_torch(), False, "sees no device"),
        (
            {"DSV4CORE_XPU_DEVICE": "cuda"},
            fake_torch(cuda=True),
            True,
            "for development, on a foreign device",
        ),
        ({"DSV4CORE_XPU_DEVICE": "cuda"}, fake_torch(), False, "sees no such device"),
        ({"DSV4CORE_XPU_DEVICE": "npu"}, fake_torch(), False, "expected xpu or, for development, cuda"),
    ],
)
def test_probe(
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    torch_module: ModuleType,
    ok: bool,
    words: str,
) -> None:
    for name in ("TRITON_INTERPRET", "DSV4CORE_XPU_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "torch", torch_module)
    answer = plugin.dsv4core_probe(plugin.SPEC, "device")
    assert answer is not None
    assert answer.ok is ok
    assert words in answer.reason


def test_probe_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "module_exists", lambda name: name != "triton")
    answer = plugin.dsv4core_probe(plugin.SPEC, "static")
    assert answer is not None
    assert (answer.ok, answer.code) == (False, Code.NOT_INSTALLED)
    assert "triton" in answer.hint


def test_probing_imports_no_triton() -> None:
    code = (
        "import sys, dsv4core_xpu.plugin as p; p.dsv4core_probe(p.SPEC, 'device');"
        "names = 'triton', 'intel_extension_for_pytorch', 'vllm_xpu_kernels';"
        "print([m for m in names if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("installed", "words"),
    [
        ({plugin.IPEX: "2.8.10+xpu", "torch": "2.13.0"}, ["2.8.10+xpu (does not fit torch 2.13.0"]),
        ({plugin.IPEX: "2.8.10+xpu", "torch": "2.8.0+xpu"}, ["2.8.10+xpu (fits torch 2.8.0+xpu): adds no"]),
        ({plugin.IPEX: "2.8.0", "torch": "2.8.0"}, ["2.8.0, a CPU build (fits torch 2.8.0)"]),
        ({plugin.VLLM: "0.1.16", "torch": "2.14.0+xpu"}, ["0.1.16 (beside torch 2.14.0+xpu): not used"]),
        ({"torch": "2.13.0"}, []),
    ],
)
def test_info_of_other_packages(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], words: list[str]
) -> None:
    monkeypatch.setattr(plugin, "installed_version", installed.get)
    lines = plugin.dsv4core_info(plugin.SPEC) or []
    assert len(lines) == len(words)
    assert all(part in line for part, line in zip(words, lines, strict=True))


@pytest.mark.parametrize("environment", [{"TRITON_INTERPRET": "1"}, {"DSV4CORE_XPU_DEVICE": "cuda"}])
def test_auto_leaves_a_backend_on_a_foreign_device(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name in ("TRITON_INTERPRET", "DSV4CORE_XPU_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "torch", fake_torch(cuda=True))
    answer = plugin.dsv4core_probe(plugin.SPEC, "device")
    assert answer is not None and answer.ok and answer.by_name
    answers = {"xpu": answer, "cpu": Availability.available()}
    assert select(Request.parse("auto", ""), (plugin.SPEC, CPU), answers)[0] is CPU
    assert select(Request.parse("xpu", ""), (plugin.SPEC, CPU), answers)[0] is plugin.SPEC


def test_device_type(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_type({"device": "cuda"}) == "cpu"
    monkeypatch.delenv("TRITON_INTERPRET")
    assert device_type({"device": "cuda"}) == "cuda"
    assert device_type({}) == "xpu"


def test_provenance(backends: tuple[Backend, Backend]) -> None:
    sources = backends[0].ops.provenance
    assert {name for name, source in sources.items() if source == "torch"} == set(portable.PRODUCTS)
    assert {name for name, source in sources.items() if source == "triton"} == set(portable.KERNELS)


@pytest.mark.parametrize("name", portable.KERNELS)
def test_every_op_launches_and_calls_no_portable_body(
    name: str, backends: tuple[Backend, Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = sample(name, Size(tokens=2, context=16))

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a portable body was called")

    for op in OPS.values():
        monkeypatch.setitem(vars(op), "body", refuse)
    before = backends[0].provider.launches
    getattr(backends[0].ops, name)(**arguments)
    assert backends[0].provider.launches > before


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_layer_writes_the_same_pages_as_on_the_cpu(layer: int, backends: tuple[Backend, Backend]) -> None:
    config = AttentionConfig.preset("tiny")
    weights = AttentionWeights.random(config, layer, 3)
    hidden = torch.randn(131, config.hidden_size, generator=torch.Generator().manual_seed(layer)).bfloat16()
    outputs, pages = [], []
    for backend in backends:
        attention = backend.attention(config, layer, weights)
        cache = PagedCache.allocate(config, [layer], 512, torch.device("cpu"))
        parts, start = [], 0
        long = config.layer(layer).ratio == 128
        for count in (129 if long else 18, 1, 1):  # a prefill that closes a window, then decode
            parts.append(attention(hidden[start : start + count], cache, cache.plan({"r": count})))
            start += count
        outputs.append(torch.cat(parts).float())
        pages.append(cache.layer(layer))
    mine, other = outputs
    assert float((mine - other).norm()) <= 4e-3 * float(other.norm())
    for field in ("swa", "compressed", "state", "indexer", "indexer_state"):
        own, reference = (getattr(p, field) for p in pages)
        assert (own is None) == (reference is None)
        assert own is None or torch.equal(own.view(torch.uint8), reference.view(torch.uint8)), field


@pytest.mark.parametrize("quant", ["f32", "ue8m0x4", None])
def test_output_projections_are_the_cpu_s(quant: Any, backends: tuple[Backend, Backend]) -> None:
    """bf16, and e4m3 with either form of scales, of one output of attention."""
    config = AttentionConfig.preset("tiny", output_quant=quant)
    weights = AttentionWeights.random(config, 0, 3)
    made = torch.Generator().manual_seed(5)
    o = torch.randn(19, config.num_attention_heads, config.head_dim, generator=made).bfloat16()
    results: list[torch.Tensor] = []
    for backend in backends:
        attention = backend.attention(config, 0, weights)
        plan = PagedCache.allocate(config, [0], 64, torch.device("cpu")).plan({"r": 19})
        results.append(attention.output(o, plan, attention.rope(plan)).float())
    mine, other = results
    assert float((mine - other).norm()) <= 4e-3 * float(other.norm())


def test_a_profile_run_only_reserves(backends: tuple[Backend, Backend]) -> None:
    config = AttentionConfig.preset("tiny")
    event = torch.cuda.Event
    attention = backends[0].attention(config, 1, AttentionWeights.random(config, 1, 3))
    before = backends[0].provider.launches
    attention.profile(Limits(max_tokens=512, max_seq_len=4096, max_requests=4))
    assert backends[0].provider.launches == before, "no kernel ran"
    assert backends[0].workspace.reserved(torch.device("cpu")) > 0
    assert torch.cuda.Event is event, "nothing of torch is replaced"
