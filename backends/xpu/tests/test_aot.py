"""The gate of ahead-of-time compilation: what it calls wrong, and that it does compile."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dsv4core.kernels.triton._devices import devices

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "triton_aot.py"
FINE = {"case": "c", "kernel": "k", "registers": 99, "spills": 10, "shared": 1024, "matrix": 8, "dots": 2}
BEFORE = {"spills": 10, "matrix": 16}


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    monkeypatch.setenv("DSV4CORE_CHECK", "0")
    spec = importlib.util.spec_from_file_location("triton_aot", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("found", "before", "words"),
    [
        ({}, BEFORE, None),
        ({"spills": 74}, BEFORE, None),
        ({"spills": 75}, BEFORE, "spills 75, its budget is 10"),
        ({"shared": 232449}, BEFORE, "232449 bytes of shared memory, sm90 has 232448"),
        ({"matrix": 7}, BEFORE, "7 matrix instructions, the baseline has 16"),
        ({"matrix": 0}, {"spills": 10, "matrix": 0}, "2 matrix products without a matrix instruction"),
        ({}, None, "not in the baseline"),
        ({"error": "TypeError: no"}, BEFORE, "does not compile: TypeError: no"),
    ],
)
def test_what_is_wrong(
    gate: Any, found: dict[str, Any], before: dict[str, int] | None, words: str | None
) -> None:
    wrong = gate.judge("sm90", {**FINE, **found}, before)
    assert [w for w in wrong if words is None or words not in w] == []
    assert bool(wrong) is (words is not None)


def test_the_baseline_has_every_target_and_every_product(gate: Any) -> None:
    known = json.loads(gate.BASELINE.read_text())
    for name in (name for name, found in devices().items() if found.target and found.backend != "xpu"):
        assert {key.partition(" / ")[0] for key in known[name]} == set(gate.CASES)


def run(*words: str) -> tuple[int, str]:
    command = [sys.executable, str(SCRIPT), "--target", "sm90", "--case", "inverse_rope", *words]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_regression_fails(tmp_path: Path) -> None:
    baseline = tmp_path / "baseline.json"
    code, text = run("--baseline", str(baseline), "--write")
    assert code == 0, text
    known = json.loads(baseline.read_text())
    assert known["sm90"] == {"inverse_rope / inverse_rope_kernel": {"spills": 0, "matrix": 0}}
    known["sm90"]["inverse_rope / inverse_rope_kernel"]["matrix"] = 4
    baseline.write_text(json.dumps(known))
    code, text = run("--baseline", str(baseline))
    assert (code, "WRONG: 0 matrix instructions, the baseline has 4" in text) == (1, True), text
