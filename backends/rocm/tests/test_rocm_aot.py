"""The gate of AMD kernels: it has every kernel, and none that multiplies a stride in 32 bits passes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[3] / "benchmarks"
FINE: dict[str, Any] = {
    "vgprs": 99, "agprs": 0, "spills": 0, "lds": 1024, "wavefronts": 8,
    "mfma": {"v_mfma_f32_16x16x16_bf16": 4},
}  # fmt: skip


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    pytest.importorskip("triton")
    monkeypatch.setenv("DSV4CORE_CHECK", "0")
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("rocm_aot", FOLDER / "rocm_aot.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_baseline_has_every_op_and_every_projection_on_both_devices(gate: Any) -> None:
    known = json.loads(gate.BASELINE.read_text())
    assert set(known) == set(gate.TARGETS)
    for name in gate.TARGETS:
        assert {key.partition(" / ")[0] for key in known[name]} == set(gate.CASES)
    assert any(case.startswith("quantised_linear/") for case in gate.CASES)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({}, None),
        ({"vgprs": 115, "spills": 16, "lds": 2048}, None),
        ({"vgprs": 116}, "116 vgprs, its budget is 99"),
        ({"spills": 17}, "17 spills, its budget is 0"),
        ({"wavefronts": 4}, "room for 4 wavefronts, the baseline has 8"),
        ({"mfma": {}}, "no v_mfma_f32_16x16x16_bf16"),
    ],
)
def test_what_is_wrong(gate: Any, found: dict[str, Any], words: str | None) -> None:
    assert gate.judge({**FINE, **found}, FINE) == ([] if words is None else [words])
    assert gate.judge(FINE, None) == ["not in the baseline (--write)"]


def test_a_product_of_32_bits_fails(
    gate: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads(gate.BASELINE.read_text())["gfx942"]["inverse_rope / inverse_rope_kernel"]
    found = (
        gate.Resources(before["vgprs"], 0, 0, 0, 0, 0, before["lds"], {}),
        gate.Occupancy(8, 32, "nothing"),
    )
    for narrow, failures in (([], 0), (["%o = arith.muli %i, %t"], 1)):
        monkeypatch.setattr(gate, "of_case", lambda *_, n=narrow: iter([("inverse_rope_kernel", *found, n)]))
        assert gate.gate(["gfx942"], "inverse_rope", False) == failures
    assert "WRONG: a stride is multiplied in 32 bits: %o = arith.muli %i, %t" in capsys.readouterr().out
