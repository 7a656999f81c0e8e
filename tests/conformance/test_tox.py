"""tox environments of the suite: a vendor's torch is kept, and none is fetched in its place."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAKE = "9.9+vendor"

pytestmark = [pytest.mark.slow, pytest.mark.network]


def fake_torch(folder: Path) -> Path:
    """A wheel of a torch that says its version and can do nothing else."""
    wheel = folder / f"torch-{FAKE}-py3-none-any.whl"
    info = f"torch-{FAKE}.dist-info"
    files = {
        "torch/__init__.py": f"__version__ = {FAKE!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: torch\nVersion: {FAKE}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(name, text)
    return wheel


class Started:
    """A virtual environment that tox is started from, and the work folder of its environments."""

    def __init__(self, folder: Path) -> None:
        self.python = folder / "venv" / "bin" / "python"
        self.work = folder / "work"
        self.env = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("DSV4CORE_", "TOX")) and key not in ("PYTHONPATH", "VIRTUAL_ENV")
        }
        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
        self.pip("-c", str(ROOT / "constraints.txt"), "tox")

    def pip(self, *words: str) -> None:
        command = [self.python, "-m", "pip", "install", "-q", *words]
        subprocess.run(command, check=True, env=self.env, timeout=120)

    def tox(self, name: str) -> tuple[int, str]:
        """Run one environment; the exit code and everything that was printed."""
        command = [self.python, "-m", "tox", "-c", ROOT, "--workdir", self.work, "-vv", "-e", name]
        done = subprocess.run(command, capture_output=True, text=True, env=self.env, timeout=240)
        return done.returncode, done.stdout + done.stderr

    def torches(self, name: str) -> list[str]:
        """What an environment holds of torch in its own folder."""
        return sorted(path.name for path in (self.work / name).glob("lib/*/site-packages/torch*"))

    def ask(self, name: str, code: str) -> str:
        """What a line of Python prints in an environment."""
        command = [self.work / name / "bin" / "python", "-I", "-c", code]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env=self.env
        ).stdout.strip()


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Started:
    """A virtual environment with tox and no torch."""
    return Started(tmp_path_factory.mktemp("tox"))


def test_without_torch_a_device_environment_stops_before_pip(started: Started) -> None:
    code, text = started.tox("conformance-xpu")
    assert code == 4, text
    assert f"conformance-xpu: nothing was installed: {started.python} has no torch" in text
    assert "install_package" not in text
    assert started.torches("conformance-xpu") == []


def test_the_torch_of_the_interpreter_that_runs_tox_is_kept(started: Started, tmp_path: Path) -> None:
    started.pip("--no-index", "--no-deps", str(fake_torch(tmp_path)))
    code, text = started.tox("conformance-cuda")
    assert code == 4, text
    assert f"torch {FAKE} of {started.python.parents[1]}" in text
    assert started.torches("conformance-cuda") == []
    seen = (
        "import importlib.metadata as m, torch; print(m.version('torch'), torch.__version__, torch.__file__)"
    )
    versions = started.ask("conformance-cuda", seen)
    assert versions.startswith(f"{FAKE} {FAKE} {started.python.parents[1]}")
    own = started.ask("conformance-cuda", "import dsv4core; print(dsv4core.__file__)")
    assert own.startswith(str(started.work)), "the package is installed, not seen in the checkout"
    assert "--backend cuda" in text and "nothing was run" in text, "the suite's own step was reached"
