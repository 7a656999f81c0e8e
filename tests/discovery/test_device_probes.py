"""The probes of the built-in device backends, against stand-ins for torch builds."""

import os
import sys
from types import ModuleType, SimpleNamespace

import pytest

import dsv4core_cuda.plugin
import dsv4core_rocm.gfx
import dsv4core_rocm.plugin
import dsv4core_xpu.plugin
from dsv4core import registry
from dsv4core.spec import BackendSpec, Code

PLUGINS = {"cuda": dsv4core_cuda.plugin, "rocm": dsv4core_rocm.plugin, "xpu": dsv4core_xpu.plugin}


def fake_torch(
    *, cuda: str | None = None, hip: str | None = None, xpu: str | None = None, count: int = 0, xpus: int = 0
) -> ModuleType:
    """A torch that knows its build and counts devices, and fails on anything that would make a context."""

    def available() -> bool:
        assert hip or os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"
        return count > 0

    torch = ModuleType("torch")
    torch.__dict__.update(
        __version__="2.99.0",
        version=SimpleNamespace(cuda=cuda, hip=hip, xpu=xpu),
        cuda=SimpleNamespace(is_available=available, device_count=lambda: count),
        xpu=SimpleNamespace(
            device_count=lambda: xpus, get_device_properties=lambda _: SimpleNamespace(name="Intel Arc B580")
        ),
    )
    return torch


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """Hide this machine's own driver files."""
    monkeypatch.setattr(dsv4core_cuda.plugin, "CONTROL", tmp_path / "nvidiactl")  # type: ignore[operator]
    monkeypatch.setattr(dsv4core_rocm.plugin, "CONTROL", tmp_path / "kfd")  # type: ignore[operator]
    monkeypatch.setattr(dsv4core_rocm.gfx, "TOPOLOGY", tmp_path / "nodes")  # type: ignore[operator]


CASES = [
    ("cuda", fake_torch(), "torch 2.99.0 is built without CUDA", ""),
    ("cuda", fake_torch(hip="7.2"), "torch 2.99.0 is a ROCm build", ""),
    ("cuda", fake_torch(cuda="13.0"), "torch 2.99.0 (CUDA 13.0) sees no device", ""),
    ("cuda", fake_torch(cuda="13.0", count=2), "torch 2.99.0 sees 2 CUDA devices", "2 CUDA devices"),
    ("rocm", fake_torch(), "torch 2.99.0 is built without ROCm", ""),
    ("rocm", fake_torch(cuda="13.0", count=1), "torch 2.99.0 is a CUDA build", ""),
    ("rocm", fake_torch(hip="7.2"), "torch 2.99.0 (ROCm 7.2) sees no device", ""),
    ("rocm", fake_torch(hip="7.2", count=1), "torch 2.99.0 sees 1 ROCm device", "1 ROCm device"),
    ("xpu", fake_torch(), "torch 2.99.0 is built without XPU", ""),
    ("xpu", fake_torch(cuda="13.0"), "torch 2.99.0 is a CUDA build", ""),
    ("xpu", fake_torch(xpu="20260100"), "torch 2.99.0 (XPU 20260100) sees no device", ""),
    ("xpu", fake_torch(xpu="20260100", xpus=1), "torch 2.99.0 sees 1 XPU device", "1 XPU device"),
]


@pytest.mark.usefixtures("no_driver")
@pytest.mark.parametrize(("name", "torch", "finding", "device"), CASES)
def test_the_registry_is_told_what_the_probe_found(
    monkeypatch: pytest.MonkeyPatch, name: str, torch: ModuleType, finding: str, device: str
) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch)
    answer = registry.get_registry().probe(name, "device")
    assert answer.reason.startswith(finding) and answer.device == device
    assert "PYTORCH_NVML_BASED_CUDA_CHECK" not in os.environ


@pytest.mark.usefixtures("no_driver")
@pytest.mark.parametrize(("name", "torch", "finding", "device"), CASES)
def test_the_finding_decides(name: str, torch: ModuleType, finding: str, device: str) -> None:
    answer = PLUGINS[name]._look(torch)
    assert (answer.ok, answer.device) == (bool(device), device)
    assert answer.reason.partition(": ")[0] == finding, "a probe may say more about the device"
    assert answer.code is (Code.OK if device else Code.NO_DEVICE)


@pytest.mark.usefixtures("no_driver")
@pytest.mark.parametrize(("name", "torch", "finding", "device"), CASES)
def test_another_build_is_answered_with_what_to_install(
    name: str, torch: ModuleType, finding: str, device: str
) -> None:
    if "build" in finding:
        assert PLUGINS[name]._look(torch).hint.startswith("install ")


def test_a_driver_without_a_matching_torch_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    control = tmp_path / "nvidiactl"  # type: ignore[operator]
    control.touch()
    monkeypatch.setattr(dsv4core_cuda.plugin, "CONTROL", control)
    answer = dsv4core_cuda.plugin._look(fake_torch())
    assert answer.device == str(control)
    assert answer.hint.startswith("install a CUDA build of torch")


def test_the_variable_around_the_count_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "0")
    dsv4core_cuda.plugin._look(fake_torch(cuda="13.0", count=1))
    assert os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == "0"


@pytest.mark.parametrize("name", list(PLUGINS))
def test_a_plugin_leaves_the_backends_of_others_alone(name: str) -> None:
    other = BackendSpec("other", "cpu", 1, "m:f")
    assert PLUGINS[name].dsv4core_probe(other, "device") is None
