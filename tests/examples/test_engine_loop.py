"""The engine loop runs as it is printed, and says what it compared."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "engine_loop.py"


def test_engine_loop(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("ok: 716 rows through 3 layers, bit for bit")


def test_engine_loop_uses_only_the_four_names_for_pages() -> None:
    imported = EXAMPLE.read_text().split("from dsv4core import (")[1].split(")")[0]
    names = {line.strip(" ,") for line in imported.splitlines()}
    pages = {"BatchPlan", "CacheSpec", "PagedCache", "cache_specs"}
    assert names - {""} == pages | {"AttentionConfig", "AttentionWeights", "get_backend"}
    assert "dsv4core." not in EXAMPLE.read_text()
