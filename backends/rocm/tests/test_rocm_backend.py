"""The whole backend in Triton's interpreter, alone and with the stand-in for aiter before its kernels."""

from __future__ import annotations

from typing import Any

import aiter_worlds as worlds
import pytest
import torch

from dsv4core import AttentionConfig, AttentionWeights, PagedCache
from dsv4core.backend import Backend
from dsv4core.errors import ConfigError
from dsv4core.kernels.triton import _launch, _tuning, portable
from dsv4core.ops import OPS
from dsv4core.providers import TAKEN, Ranked
from dsv4core_cpu.backend import CpuBackend
from dsv4core_cpu.plugin import SPEC as CPU
from dsv4core_rocm.attention import DeepseekV4ROCMAttention
from dsv4core_rocm.backend import PROVIDERS, RocmBackend
from dsv4core_rocm.plugin import SPEC


def made(**settings: str) -> Backend:
    own = RocmBackend(settings)
    return Backend(SPEC, own, own.ops)


def test_without_aiter_every_op_is_a_kernel() -> None:
    sources = made().ops.provenance
    assert {name for name, source in sources.items() if source == "triton"} == set(portable.KERNELS)
    assert {name for name, source in sources.items() if source == "torch"} == set(portable.PRODUCTS)


@pytest.mark.usefixtures("fake_aiter")
def test_with_aiter_the_provenance_says_so() -> None:
    sources = made(aiter="on", gfx="gfx950").ops.provenance
    assert {name for name, source in sources.items() if source == "fake aiter, triton"} == set(PROVIDERS)
    assert "fake aiter, triton" not in made(gfx="gfx950").ops.provenance.values()  # auto: on devices


@pytest.mark.parametrize("settings", [{"aiter": "yes"}, {"gfx": "gfx900"}])
def test_settings_are_checked(settings: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        RocmBackend(settings)


def test_on_another_vendors_device_kernels_are_cut_as_for_the_named_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dsv4core_rocm.backend.interpreted", lambda: False)
    call = worlds.decode("fp8_ds_mla")
    call["swa_slots"] = call["swa_slots"].clamp(max=79)
    families: list[str] = []
    for settings in ({}, {"gfx": "gfx942"}, {"gfx": "gfx1201"}):
        own = RocmBackend(settings)
        own.device_type = "cpu"  # where the call's tensors are: launches are recorded, not run
        ops = Backend(SPEC, own, own.ops).ops
        with _launch.recorded(lambda *_: families.append(_tuning.device_class(call["q"])), "sm90"):
            ops.sparse_decode(**call)
    assert list(dict.fromkeys(families)) == ["sm90", "gfx942", "default"] and _launch.assumed is None


@pytest.mark.usefixtures("fake_aiter")
def test_a_call_that_does_not_fit_goes_to_the_kernel(arch: str) -> None:
    ops = made(aiter="on", gfx=arch).ops
    ranked = ops.sparse_decode.implementation
    assert isinstance(ranked, Ranked)
    for layout in ("fp8_ds_mla", "fp8_row"):
        call = worlds.decode(layout)
        call["swa_slots"] = call["swa_slots"].clamp(max=79)
        fits = ranked.explain(**call)[0][1] is True
        assert fits is (arch == "gfx950" and layout == "fp8_ds_mla")
        before = TAKEN["aiter pa_decode_sparse"]
        lse, out = worlds.expected("sparse_decode", call)
        assert torch.allclose(ops.sparse_decode(**call), lse, rtol=1e-5, atol=1e-5)
        assert out is not None and worlds.close(call["out"], out)
        assert TAKEN["aiter pa_decode_sparse"] - before == fits


def steps(backend: Backend, config: AttentionConfig, layer: int) -> tuple[torch.Tensor, Any]:
    """A prefill that closes a window, then decode."""
    attention = backend.attention(config, layer, AttentionWeights.random(config, layer, 3))
    hidden = torch.randn(131, config.hidden_size, generator=torch.Generator().manual_seed(layer)).bfloat16()
    cache = PagedCache.allocate(config, [layer], 512, torch.device("cpu"))
    parts, start = [], 0
    for count in (129 if config.layer(layer).ratio == 128 else 18, 1, 1):
        parts.append(attention(hidden[start : start + count], cache, cache.plan({"r": count})))
        start += count
    return torch.cat(parts).float(), cache.layer(layer)


@pytest.mark.usefixtures("fake_aiter")
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_layer_of_aiter_writes_the_pages_of_the_cpu(layer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV4CORE_ROCM_GFX", "gfx950")
    other = CpuBackend({})
    config, before = AttentionConfig.preset("tiny"), TAKEN.copy()
    backend = made(aiter="on", gfx="gfx950")
    assert isinstance(
        backend.attention(config, 0, AttentionWeights.random(config, 0, 1)), DeepseekV4ROCMAttention
    )
    mine, own = steps(backend, config, layer)
    expected, reference = steps(Backend(CPU, other, other.ops), config, layer)
    assert float((mine - expected).norm()) <= 4e-3 * float(expected.norm())
    for field in ("swa", "compressed", "state", "indexer", "indexer_state"):
        a, b = getattr(own, field), getattr(reference, field)
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a.view(torch.uint8), b.view(torch.uint8)), field
    taken = TAKEN - before
    assert taken["aiter pa_decode_sparse, direct"] == 2 and taken["aiter pa_sparse_prefill_opus, direct"] == 1


def test_a_layer_checks_what_it_hands_to_aiter() -> None:
    """The way past the op goes through the op's contract."""
    backend = made()
    with pytest.raises(Exception, match="argument 'q'"):
        backend.ops.sparse_decode.checked((), {**worlds.decode("fp8_ds_mla"), "q": torch.zeros(2)})
    assert set(backend.ops.provenance) == set(OPS)
