"""The files under benchmarks/: every case can be told apart and says what it moves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dsv4core.bench.case import load
from dsv4core.ops import OPS

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
FILES = ("attention", "indexer", "writers", "curves", "layers")


@pytest.mark.parametrize("name", FILES)
def test_cases_of_a_file(name: str) -> None:
    cases = load(BENCHMARKS / f"{name}.py")
    names = [case.name for case in cases if not case.curve or case.curve != "decode, 8 tokens"]
    assert cases and len(set(names)) == len(names)
    for case in cases:
        assert case.bytes > 0 and (case.op in OPS or case.start is not None)
        assert not case.curve or case.x in case.facts


@pytest.mark.parametrize("name", ["compress r=128 fp8_ds_mla", "save states r=4 d=128", "insert", "gather"])
def test_arguments_are_legal(name: str) -> None:
    case = next(case for case in load(BENCHMARKS / "writers.py") if case.name == name)
    bound = OPS[case.op].contract.bind((), case.make())
    OPS[case.op].contract.check(bound, True)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the high-water mark is Linux's")
def test_memory_per_token_is_the_byte_model_and_a_constant() -> None:
    """256K tokens through a layer of every kind: pages and RoPE tables, and at most 16 MiB besides."""
    context = 1 << 18
    command = [sys.executable, str(BENCHMARKS / "memory.py"), "--child", str(context)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    pages = (584 * 64 + 64) / 256 + (132 * 64 + 192) / 256 + (584 * 2 + 560) / 256  # padded to 576 bytes
    expected = context * (pages + 2 * 256)
    assert expected * 0.9 < int(done.stdout) < expected + (16 << 20)
