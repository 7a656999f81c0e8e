"""Building and choosing the kernels: settings, reasons, and two processes at once."""

from __future__ import annotations

import ctypes
import logging
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from dsv4core.errors import ConfigError
from dsv4core.ops import OPS
from dsv4core_cpu import native as loader
from dsv4core_cpu.backend import CpuBackend

TINY = 'extern "C" __attribute__((visibility("default"))) int answer() { return 42; }\n'


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of one function instead of the kernels, and an empty cache."""
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "tiny.cpp").write_text(TINY)
    monkeypatch.setattr(loader, "SOURCES", sources)
    monkeypatch.setattr(loader, "load", loader.load.__wrapped__)  # nothing is remembered between tests
    return tmp_path / "cache"


def compiler(tmp_path: Path, message: str) -> str:
    """A compiler that answers questions and refuses to compile."""
    path = tmp_path / "compiler"
    refuse = f"echo '{message}' >&2; exit 1"
    path.write_text(f'#!/bin/sh\ncase " $* " in *" -c "*) {refuse};; *) exec c++ "$@";; esac\n')
    path.chmod(0o755)
    return str(path)


def providers(**settings: str) -> set[str]:
    return {impl.provider for impl in CpuBackend(settings).ops.values()}


def test_off_is_the_torch_bodies() -> None:
    assert providers(native="off") == {"torch"}
    assert set(CpuBackend({"native": "off"}).ops) == set(OPS)


def test_on_is_native_where_there_is_a_kernel(native) -> None:
    backend = CpuBackend({})
    torch_only = {name for name, impl in backend.ops.items() if impl.provider == "torch"}
    assert backend.native is not None and backend.native.level in loader.LEVELS
    optional = {name for name, op in OPS.items() if op.optional}
    assert torch_only == {"linear", "grouped_output_projection"} | optional


@pytest.mark.parametrize("setting", [{"native": "on"}, {"level": "sse"}])
def test_unknown_words_are_refused(setting: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        CpuBackend(setting)


def test_without_a_compiler(tiny: Path, monkeypatch, caplog) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler")
    with caplog.at_level(logging.WARNING, "dsv4core"):
        assert providers(cache=str(tiny)) == {"torch"}
    assert len(caplog.records) == 1
    assert "no C++ compiler" in caplog.text and "DSV4CORE_CPU_NATIVE=off" in caplog.text
    with pytest.raises(ConfigError, match="DSV4CORE_CPU_NATIVE=require, but there is no C"):
        CpuBackend({"native": "require", "cache": str(tiny)})


def test_a_failed_build_says_why_and_leaves_nothing(tiny: Path, tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, "tiny.cpp:1: error: out of luck"))
    with caplog.at_level(logging.WARNING, "dsv4core"):
        assert providers(cache=str(tiny), level="portable") == {"torch"}
    assert len(caplog.records) == 1 and "out of luck" in caplog.text
    assert [path.name for path in tiny.rglob("*") if path.is_file()] == ["lock"]


def test_a_library_outlives_the_compiler(tiny: Path, monkeypatch) -> None:
    made = loader.load("portable", str(tiny))
    assert made.library.answer() == 42
    monkeypatch.setenv("CXX", "/no/such/compiler")
    assert loader.load("portable", str(tiny)).library.answer() == 42


def test_another_source_is_another_library(tiny: Path) -> None:
    loader.load("portable", str(tiny))
    (loader.SOURCES / "tiny.cpp").write_text(TINY.replace("42", "43"))
    assert loader.load("portable", str(tiny)).library.answer() == 43
    assert len(list(tiny.rglob("*.so"))) == 2


def test_processes_that_build_at_once(tiny: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from dsv4core_cpu import native as n;"
        " n.SOURCES = Path(sys.argv[1]); assert n.load('portable', sys.argv[2]).library.answer() == 42"
    )
    command = [sys.executable, "-c", program, str(loader.SOURCES), str(tiny)]
    running = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    made = list(tiny.rglob("*.so"))
    assert len(made) == 1 and ctypes.CDLL(str(made[0])).answer() == 42


def test_levels_are_ordered_and_this_machine_has_one() -> None:
    names = list(loader.LEVELS)
    for better, worse in pairwise(names):
        assert set(loader.LEVELS[worse]) < set(loader.LEVELS[better])
    assert loader.best_level() in names
