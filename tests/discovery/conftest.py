"""Fixtures: fake distributions on sys.path, and fresh processes."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_plugins import Site

from dsv4core import registry, selection


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
