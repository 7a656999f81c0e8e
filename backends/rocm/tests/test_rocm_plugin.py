"""What the probe and `info` say, from files alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import dsv4core_rocm.plugin as plugin
from dsv4core import backends, probe, registry
from dsv4core.spec import Code
from dsv4core_conformance.case import load_cases
from dsv4core_rocm import gfx

NODE = "cpu_cores_count {cores}\ngfx_target_version {version}\nwave_front_size 64\n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A driver with a processor and two MI300X."""
    for node, version in enumerate((0, 90402, 90402)):
        (tmp_path / str(node)).mkdir()
        text = NODE.format(cores=0 if version else 96, version=version)
        (tmp_path / str(node) / "properties").write_text(text)
    (tmp_path / "9").mkdir()  # a node without a readable file
    (tmp_path / "version").write_text("6.12.12\n")
    monkeypatch.setattr(gfx, "TOPOLOGY", tmp_path)
    monkeypatch.setattr(gfx, "DRIVER", tmp_path / "version")
    return tmp_path


@pytest.mark.parametrize(
    ("version", "name"),
    [(90402, "gfx942"), (90500, "gfx950"), (90010, "gfx90a"), (110501, "gfx1151"), (120500, "gfx1250")],
)
def test_names_of_targets(version: int, name: str) -> None:
    assert gfx.target_name(version) == name and name in gfx.DEVICES


def test_an_unknown_architecture_gets_a_modest_row() -> None:
    assert gfx.gfx("gfx942:sramecc+:xnack-") is gfx.DEVICES["gfx942"]
    assert (gfx.gfx("gfx906").wavefront, gfx.gfx("gfx1030").wavefront, gfx.gfx("gfx906").fp8) == (
        64,
        32,
        "none",
    )


@pytest.mark.usefixtures("machine")
def test_info(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "installed_version", {"amd-aiter": "0.1.7"}.get)
    assert plugin.dsv4core_info(plugin.SPEC) == [
        "amdgpu 6.12.12",
        "gfx942 (MI300X, MI325X): wavefront 64, fp8 fnuz",
        "gfx942 (MI300X, MI325X): wavefront 64, fp8 fnuz",
        "aiter from: amd-aiter 0.1.7 (`info --ops` says where it is used)",
    ]
    assert plugin._architectures() == " (gfx942)"


def test_info_of_a_machine_without_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gfx, "TOPOLOGY", tmp_path)
    monkeypatch.setattr(gfx, "DRIVER", tmp_path / "none")
    monkeypatch.setattr(plugin, "installed_version", lambda name: None)
    assert plugin.dsv4core_info(plugin.SPEC) == [] and plugin._architectures() == ""


@pytest.mark.parametrize(
    ("version", "ok"),
    [("2.9.0+rocm6.4", True), ("2.13.0", True), ("2.13.0+cpu", False), ("2.11.0+cu130", False)],
)
def test_static_answers(version: str, ok: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "installed_version", lambda name: version)
    answer = plugin._installed()
    assert (answer.ok, answer.code) == (ok, Code.OK if ok else Code.NO_DEVICE)


def test_probing_imports_neither_triton_nor_aiter() -> None:
    code = (
        "import sys, dsv4core_rocm.plugin as p;"
        "[p.dsv4core_probe(p.SPEC, depth) for depth in ('static', 'device')]; p.dsv4core_info(p.SPEC);"
        "print([m for m in ('triton', 'aiter') if m in sys.modules])"
    )
    path = os.pathsep.join((str(Path(__file__).parent / "fake"), *sys.path))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_a_torch_without_the_name_of_its_build_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source builds carry no local version, so the installed files promise more than the device holds."""
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(plugin, "installed_version", lambda name: "2.11.0")
    registry.refresh()
    assert next(row for row in backends() if row.name == "rocm").available
    subject: Any = SimpleNamespace(name="rocm")
    load_cases()["suite/caps/backends"].run(subject)
    registry.refresh()


@pytest.mark.parametrize(
    ("name", "version", "ok"),
    [
        ("pytorch-triton-rocm", "3.4.0", False),
        ("pytorch-triton-rocm", "3.5.1", True),
        ("triton-rocm", "3.7.0+git1", True),
        ("triton", "3.4.0", False),
        ("", "", True),  # AMD's own builds may carry no metadata
    ],
)
def test_a_triton_that_cannot_compile_the_kernels_is_named(
    name: str, version: str, ok: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(probe, "installed_version", {name: version, "torch": "2.9.1+rocm6.4"}.get)
    answer = probe.probe_kernels(plugin.SPEC, "static", plugin._installed, plugin._look, plugin.TRITON)
    assert (answer.ok, answer.code) == (ok, Code.OK if ok else Code.VERSION_CONFLICT)
    if not ok:
        assert f"{name} {version} is installed, >=3.5 is needed" in answer.reason and "2.9" in answer.hint
