"""Tiny fake distributions on sys.path, and fresh processes."""

import importlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dsv4core import registry, selection


class Site:
    """A folder of fake installed distributions."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.modules: list[str] = []

    def add(self, distribution: str, points: dict[str, str], source: str = "", version: str = "1.0") -> None:
        """Install a distribution: its entry points, and ``source`` as every module they name."""
        info = self.path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        lines = "".join(f"{name} = {value}\n" for name, value in points.items())
        (info / "entry_points.txt").write_text(f"[dsv4core.backends]\n{lines}")
        for module in points.values():
            if source:
                self.modules.append(module)
                (self.path / f"{module}.py").write_text(textwrap.dedent(source))
        importlib.invalidate_caches()
        registry.refresh()


HEADER = """
from dsv4core.hookspecs import hookimpl
from dsv4core.spec import Availability, BackendSpec, Code, Requirement
"""


def backend_source(
    name: str, priority: int = 50, extra: str = "", factory: str = "json:loads", **spec: object
) -> str:
    """Return the source of a plugin with one backend that is always available."""
    fields = "".join(f", {key}={value!r}" for key, value in spec.items())
    return (
        f"{HEADER}\nSPEC = BackendSpec({name!r}, 'cpu', {priority}, {factory!r}{fields})\n"
        f"@hookimpl\ndef dsv4core_backends():\n    return [SPEC]\n{extra}"
    )


def probe_source(answer: str) -> str:
    """Return the source of a probe hook whose answer is an expression."""
    body = f"return ({answer}) if spec.name == SPEC.name else None"
    return f"@hookimpl\ndef dsv4core_probe(spec, depth):\n    {body}\n"


@pytest.fixture(autouse=True)
def clean_slate(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start and end with no DSV4CORE_* variable, no registry and no created backend."""
    for name in list(os.environ):
        if name.startswith("DSV4CORE_"):
            monkeypatch.delenv(name)
    created = dict(selection._created)
    registry.refresh()
    yield
    registry.refresh()
    selection._created.clear()
    selection._created.update(created)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Yield a folder of fake distributions that is first on sys.path."""
    folder = Site(tmp_path / "site")
    folder.path.mkdir()
    monkeypatch.syspath_prepend(str(folder.path))
    yield folder
    for module in folder.modules:
        sys.modules.pop(module, None)


@pytest.fixture
def fresh() -> Callable[..., str]:
    """Return a function that runs code in a new process and returns what it prints."""

    def run(code: str, *path: Path, code_expected: int = 0, **env: str) -> str:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("DSV4CORE_")}
        search = os.pathsep.join([*map(str, path), *filter(None, [os.environ.get("PYTHONPATH", "")])])
        result = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            capture_output=True,
            text=True,
            env={**clean, "PYTHONPATH": search, **env},
            timeout=120,
        )
        assert result.returncode == code_expected, result.stderr
        return result.stdout

    return run
