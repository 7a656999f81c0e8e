"""`dsv4core conformance`: the same run, the same exit codes, without pytest's words."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsv4core.cli import conformance, main

GOOD = ["suite/det/pass", "op/linear/det/pass"]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that would have been started; each ends with 3."""
    found: list[list[str]] = []

    def run(words: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
        found.append(list(words))
        return subprocess.CompletedProcess(words, 3)

    monkeypatch.setattr(conformance.subprocess, "run", run)
    return found


HEAD = [
    sys.executable,
    "-m",
    "pytest",
    "-p",
    "dsv4core_conformance.plugin",
    "--pyargs",
    "dsv4core_conformance",
]


def test_words_reach_pytest(started: list[list[str]]) -> None:
    words = ["--backend", "xpu", "--level", "layout", "--device", "xpu:1", "--case", "a*", "--case", "b*"]
    files = ["--report", "r.json", "--html", "r.html"]
    assert main(["conformance", *words, *files, "--strict", "--", "-q", "-n", "2"]) == 3
    assert main(["conformance", "--", "--collect-only"]) == 3
    assert main(["conformance"]) == 3
    files = ["--dsv4core-report", "r.json", "--dsv4core-html", "r.html"]
    assert started == [[*HEAD, *words, *files, "--strict", "-q", "-n", "2"], [*HEAD, "--collect-only"], HEAD]


def test_a_missing_extra_says_what_to_type(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(conformance, "module_exists", lambda name: name != "pytest_timeout")
    assert main(["conformance", "--backend", "cpu"]) == 4
    said = capsys.readouterr().err
    assert "pytest_timeout" in said and 'pip install "dsv4core[conformance]"' in said and not started


def test_unknown_words_are_a_usage_error(
    started: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["conformance", "--level", "all"]) == 2 and "invalid choice" in capsys.readouterr().err
    assert main(["conformance", "--no-such-option"]) == 2 and not started


def test_a_run_of_its_own(command: Callable, tmp_path: Path) -> None:
    words = ["-m", "dsv4core", "conformance", "--backend", "cpu", "--report", "r.json", "--html", "r.html"]
    done = command(*words, "--json", "--", "-p", "toy", "-q", cases=GOOD)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "r.json").read_text())
    assert "verdict: pass" in done.stderr and (tmp_path / "r.html").exists()


def test_what_cannot_run_exits_4(command: Callable) -> None:
    done = command("-m", "dsv4core", "conformance", "--backend", "xpu", "--", "-p", "toy", cases=GOOD)
    assert done.returncode == 4 and "xpu" in done.stderr and "nothing was run" in done.stderr


def test_a_device_that_is_not_here_is_refused_in_words(command: Callable) -> None:
    words = ["-m", "dsv4core", "conformance", "--backend", "cpu", "--device", "mps"]
    done = command(*words, "--", "-p", "toy", cases=GOOD)
    assert done.returncode == 4 and "nothing was run: device 'mps'" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
