"""The backend guide's own code, taken from the page: it is short, it is judged, and it passes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = (Path(__file__).parents[2] / "docs" / "backend-guide.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", GUIDE, re.S)
TOML = next(text for kind, text in BLOCKS if kind == "toml")
PLUGIN, BACKEND, REFUSAL, DEVIATION = [text for kind, text in BLOCKS if kind == "python"]
RUN = re.search(r"python -m pytest (--pyargs.*--case 'op/inverse_rope/\*')", GUIDE)[1]


@pytest.fixture
def acme(tmp_path: Path) -> Path:
    """The files of the guide, visible as an installed distribution."""
    info, package = tmp_path / "dsv4core_acme-0.1.0.dist-info", tmp_path / "dsv4core_acme"
    info.mkdir()
    package.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dsv4core-acme\nVersion: 0.1.0\n")
    point = re.search(r'^acme = "(.*)"$', TOML, re.M)[1]
    (info / "entry_points.txt").write_text(f"[dsv4core.backends]\nacme = {point}\n")
    (package / "__init__.py").touch()
    (package / "plugin.py").write_text(PLUGIN)
    (package / "backend.py").write_text(BACKEND)
    return tmp_path


def judge(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the guide's command beside those files."""
    words = [word.strip("'") for word in RUN.split()]
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH", "")])])
    return subprocess.run(
        [sys.executable, "-m", "pytest", *words, "-p", "no:cacheprovider"],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )


def test_the_first_op_takes_at_most_40_lines() -> None:
    lines = [line for line in (PLUGIN + BACKEND).splitlines() if line.strip()]
    assert len(lines) <= 40


def test_the_first_op_is_green(acme: Path) -> None:
    done = judge(acme)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout


def test_the_mistake_of_the_guide_is_found(acme: Path) -> None:
    backend = acme / "dsv4core_acme" / "backend.py"
    right, wrong = "odd * cos - even * sin", "odd * cos + even * sin"
    assert right in BACKEND and wrong in GUIDE
    backend.write_text(BACKEND.replace(right, wrong))
    done = judge(acme)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "op/inverse_rope/" in done.stdout


def test_the_deviation_of_the_guide_is_one(acme: Path) -> None:
    (backend, plugin) = (acme / "dsv4core_acme" / name for name in ("backend.py", "plugin.py"))
    start = "def inverse_rope(o, positions, cos_sin):\n"
    assert start in BACKEND
    refusing = BACKEND.replace(start, start + REFUSAL)
    backend.write_text("from dsv4core.errors import OpArgumentError\n" + refusing)
    assert judge(acme).returncode == 1
    plugin.write_text(PLUGIN + DEVIATION)
    done = judge(acme)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verdict: partial" in done.stdout
    backend.write_text(BACKEND)
    assert "stale deviation" in judge(acme).stdout
