"""Fixtures: runs of the suite over toy cases, in this process or in one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import toy

from dsv4core import registry, selection
from dsv4core.hookspecs import hookimpl
from dsv4core.spec import BackendSpec, Deviation
from dsv4core_conformance import case as case_module


@pytest.fixture(autouse=True)
def clean_slate(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start and end with no DSV4CORE_* variable set, no registry, no created backend, the real cases."""
    for name in list(os.environ):
        if name.startswith(("DSV4CORE_", "TRITON_", "TOY_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DSV4CORE_FALLBACK", "warn")  # the plugin sets it; this puts it back
    created = dict(selection._created)
    # loaded now, because a module that was imported once never registers its cases again
    families, cases = case_module.FAMILIES, dict(case_module.load_cases())
    registry.refresh()
    yield
    registry.refresh()
    selection._created.clear()
    selection._created.update(created)
    case_module.FAMILIES = families
    case_module.CASES.clear()
    case_module.CASES.update(cases)


@dataclass
class Ran:
    """What a run gave: exit code, everything printed, the report."""

    code: int
    out: str
    report: dict[str, Any]

    def outcomes(self) -> dict[str, str]:
        """Outcome by case."""
        return {values["id"]: values["outcome"] for values in self.report["cases"]}

    def case(self, name: str) -> dict[str, Any]:
        """The result of one case."""
        return next(values for values in self.report["cases"] if values["id"] == name)


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Callable[..., Ran]:
    """Run the suite in this process over toy cases: `suite(names, *words, declared=[...])`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)  # meant for the run that runs this test

    def run(names: Iterable[str], *words: str, declared: Iterable[Deviation] = ()) -> Ran:
        toy.use(names)
        if declared:
            registry.get_registry()._manager.register(Declares(list(declared)), "toy")
        file = tmp_path / "report.json"
        file.unlink(missing_ok=True)
        arguments = [
            "-p",
            "no:cacheprovider",
            "-p",
            "no:unraisableexception",
            "--pyargs",
            "dsv4core_conformance",
            "--report",
            str(file),
        ]
        code = pytest.main([*arguments, "--backend", "cpu", *words])
        printed = capsys.readouterr()
        return Ran(
            int(code), printed.out + printed.err, json.loads(file.read_text()) if file.exists() else {}
        )

    return run


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python with words in a process of its own that knows the toy cases."""

    def run(*words: str, cases: Iterable[str] = (), **env: str) -> subprocess.CompletedProcess[str]:
        search = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        values = {**os.environ, "PYTHONPATH": search, "TOY_CASES": " ".join(cases), **env}
        return subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=values, capture_output=True, text=True, timeout=120
        )

    return run


class Declares:
    """A plugin that declares deviations for the CPU backend."""

    def __init__(self, deviations: list[Deviation]) -> None:
        self.deviations = deviations

    @hookimpl
    def dsv4core_deviations(self, spec: BackendSpec) -> list[Deviation]:
        return self.deviations
