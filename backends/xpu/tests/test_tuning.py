"""The table of launch arguments: who reads which row, and how `dsv4core tune` finds and writes rows."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dsv4core.cli import main
from dsv4core.config import AttentionConfig
from dsv4core.kernels.triton import _launch, _tuning, calls, sparse_decode, tune
from dsv4core.kernels.triton._devices import DEFAULT, FOLDER, devices, family
from dsv4core.kernels.triton._tuning import Place, tuned
from dsv4core.samples import Size, sample

HERE = torch.empty(0)


@pytest.mark.parametrize(
    ("backend", "arch", "name"),
    [
        ("cuda", 80, "sm80"),
        ("cuda", 89, "sm80"),
        ("cuda", 90, "sm90"),
        ("cuda", 103, "sm100"),
        ("cuda", 120, "sm120"),
        ("cuda", 75, "default"),
        ("hip", "gfx942", "gfx942"),
        ("hip", "gfx950", "gfx950"),
        ("hip", "gfx1201", "default"),
        ("xpu", {"name": "Intel(R) Arc(TM) A770 Graphics"}, "arc_a"),
        ("xpu", {"name": "Intel(R) Arc(TM) Pro B60 Graphics"}, "arc_b"),
        ("xpu", {"name": "Intel(R) Data Center GPU Max 1550"}, "max"),
        ("xpu", {"name": "Intel(R) Graphics"}, "default"),
    ],
)
def test_a_target_of_triton_belongs_to_one_family(backend: str, arch: Any, name: str) -> None:
    assert family(backend, arch) == name


@pytest.mark.parametrize("name", sorted(devices()))
def test_files_are_as_they_are_written(name: str) -> None:
    assert (FOLDER / f"{name}.json").read_text() == tune.text(devices()[name])


def test_every_kernel_has_rows_for_any_device_and_any_shape() -> None:
    default = devices()[DEFAULT].kernels
    for found in devices().values():
        assert set(found.kernels) <= set(default)
        for rows in found.kernels.values():
            assert "least" not in rows[-1] and all("least" in row for row in rows[:-1])


def test_both_forms_of_decode_multiply_in_the_same_shape() -> None:
    """Their sums are equal in every bit, and a matrix instruction's depth is an order of summation."""
    for found in devices().values():
        forms = [found.kernels.get(name, ()) for name in ("sparse_attention", "weigh_keys", "use_weights")]
        assert len({row.get("matrix_instr_nonkdim", 0) for rows in forms for row in rows}) <= 1, found.of


def test_what_only_amd_s_compiler_takes_stays_behind_on_other_devices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[set[str]] = []

    class Kernel:
        __name__, arg_names = "kernel", ()

        def __getitem__(self, grid: Any) -> Any:
            return lambda *arguments, **meta: given.append(set(meta) - {"enable_fp_fusion"})

    monkeypatch.setattr(_launch, "interpreted", False)
    row = tuned("sparse_prefill", HERE, heads=8)
    with _launch.launched_as("gfx942"):
        row |= tuned("sparse_prefill", HERE, heads=8)
        _launch.launch(Kernel(), 1, HERE, **row)
    _launch.launch(Kernel(), 1, HERE, **row)
    assert given == [set(row) - set(_launch.AMD_ONLY), set(row)] and given[0] != given[1]


def test_a_shape_chooses_the_first_row_that_it_reaches() -> None:
    sizes = [tuned("sparse_attention", HERE, heads=heads)["HEADS"] for heads in (1, 16, 63, 64, 128)]
    assert sizes == [16, 16, 16, 64, 64]


@pytest.mark.parametrize("case", ["sparse_decode 64 heads, few tokens", "sparse_decode 64 heads"])
def test_gluon_kernels_keep_their_tiles_whatever_the_table_has(case: str) -> None:
    """Their workspace would be too small otherwise, and a device that tunes would write behind it."""
    _, given = calls.calls(few=1)[case]()

    def shapes(**row: int) -> list[list[Any]]:
        found: list[list[Any]] = []

        def note(kernel: Any, arguments: tuple[Any, ...], meta: dict[str, Any]) -> None:
            sizes = [list(a.shape) if isinstance(a, torch.Tensor) else a for a in arguments]
            found.append([kernel.__name__, *sizes, meta])

        def choose(place: Place) -> dict[str, int]:
            known = {k: v for k, v in _tuning.row_at(place).items() if k != "least"}
            return known | row if place.kernel == "sparse_attention" else known

        with _launch.recorded(note, "sm90"), _tuning.trial(choose):
            sparse_decode.sparse_decode(**given)
        return found

    assert shapes(HEADS=32, KEYS=32) == shapes() and "hopper" in shapes()[0][0]


def one_call() -> dict[str, Any]:
    size = Size(3, 70, AttentionConfig.preset("tiny"))
    return {"decode": lambda: ("sparse_decode", sample("sparse_decode", size))}


def keys_of_32_are_fastest(functions: Any) -> dict[str, float]:
    seconds: dict[str, float] = {}
    for name, function in functions.items():
        function()
        row = next(c.cell_contents for c in function.__closure__ if isinstance(c.cell_contents, dict))
        seconds[name] = 1e-3 * (1 + abs(row["KEYS"] - 32)) + 1e-5 * row["num_warps"]
    return seconds


def test_tuning_takes_what_is_faster_and_right() -> None:
    (outcome,) = tune.tune(one_call(), "cpu", (), keys_of_32_are_fastest, 0)
    assert outcome.place == Place("interpreter", "sparse_attention", 1)
    assert outcome.before["KEYS"] > outcome.after["KEYS"] == 32
    assert outcome.after["HEADS"] == outcome.before["HEADS"]
    assert outcome.seconds_after < outcome.seconds_before
    written = json.loads(tune.tuned_file("interpreter", [outcome], "here"))
    assert written["measured"] == "sparse_attention: here"
    assert written["kernels"]["sparse_attention"][1]["KEYS"] == 32
    assert tuned("sparse_attention", HERE, heads=4) == outcome.before, "this process has the table it had"


def test_every_kernel_of_the_table_can_be_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    """But the one of Hopper, which nothing interprets."""
    names = {
        name
        for found in devices().values()
        for rows in found.kernels.values()
        for row in rows
        for name in row
    }
    monkeypatch.setattr(tune, "LIMITS", dict.fromkeys(names, 0))  # a call with the table's rows is enough
    made = calls.calls(4, few=2, context=40) | calls.products(4, 256)
    with _launch.launched_as(DEFAULT):
        reached = {outcome.place.kernel for outcome in tune.tune(made, "cpu", (), keys_of_32_are_fastest, 0)}
    assert reached == set(devices()[DEFAULT].kernels) - {"use_kept"}


def test_kernels_that_were_left_out_keep_the_word_of_where_they_come_from() -> None:
    row = dict(devices()["sm90"].kernels["use_kept"][0])
    outcomes = [tune.Outcome(Place("sm90", "use_kept", 0), row, row, 0, 0)]
    before = devices()["sm90"].measured
    assert json.loads(tune.tuned_file("sm90", outcomes, "there"))["measured"] == f"{before}; use_kept: there"
    assert json.loads(tune.tuned_file("sm90", outcomes, before))["measured"] == before
    assert json.loads(tune.tuned_file("sm80", outcomes, "there"))["measured"] == "use_kept: there"
    everything = [
        tune.Outcome(Place("sm90", kernel, i), dict(row), dict(row), 0, 0)
        for kernel, rows in devices()["sm90"].kernels.items()
        for i, row in enumerate(rows)
    ]
    assert json.loads(tune.tuned_file("sm90", everything, "there"))["measured"] == "there"


def test_what_gives_other_results_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune._Trial, "close", lambda *_: False)
    (outcome,) = tune.tune(one_call(), "cpu", (), keys_of_32_are_fastest, 0)
    assert outcome.after == outcome.before


def test_a_device_that_refuses_what_is_timed_keeps_the_row() -> None:
    def refuse(functions: Any) -> dict[str, float]:
        raise torch.OutOfMemoryError("no room for a graph")

    (outcome,) = tune.tune(one_call(), "cpu", ("sparse_attention",), refuse, 0)
    assert outcome.after == outcome.before and outcome.seconds_after == 0


def test_a_clock_that_always_says_faster_comes_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune._Trial, "same", lambda *_: True)
    seen: list[tuple[tuple[str, int], ...]] = []

    def faster(functions: Any) -> dict[str, float]:
        other = functions["other"]
        row = next(c.cell_contents for c in other.__closure__ if isinstance(c.cell_contents, dict))
        seen.append(tuple(row.items()))
        return {"best": 1.0, "other": 0.5}

    (outcome,) = tune.tune(one_call(), "cpu", ("sparse_attention",), faster, 0)
    assert len(seen) == len(set(seen)) and outcome.after != outcome.before


def test_nothing_new_is_tried_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(1000))
    monkeypatch.setattr(tune, "time", SimpleNamespace(monotonic=lambda: float(next(now))))
    calls_made = {"first": one_call()["decode"], "second": lambda: pytest.fail("made after the end")}
    timed: list[str] = []

    def note(functions: Any) -> dict[str, float]:
        timed.extend(functions)
        return dict.fromkeys(functions, 1.0)

    assert len(list(tune.tune(calls_made, "cpu", (), note, 0, seconds=4.5))) == 1
    assert len(timed) <= 2 * 2


def test_the_command_says_what_it_did_not_reach(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calls, "calls", lambda *_, **__: one_call())
    monkeypatch.setattr(calls, "products", lambda *_, **__: {})
    assert main(["tune", "--tokens", "3", "--seconds", "1e-9"]) == 0
    said = capsys.readouterr().out
    assert "not reached" in said and "sparse_attention" in said
    assert main(["tune", "--tokens", "3", "--kernel", "quantise_activation"]) == 0
    assert "not reached: quantise_activation" in capsys.readouterr().out
    assert main(["tune", "--seconds", "0"]) == 2
    assert main(["tune", "--out", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_the_command_writes_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calls, "calls", lambda *_, **__: one_call())
    monkeypatch.setattr(calls, "products", lambda *_, **__: {})
    monkeypatch.setattr(tune, "LIMITS", {"HEADS": 0, "KEYS": 0, "num_warps": 0, "num_stages": 0})
    assert main(["tune", "--tokens", "3", "--out", str(tmp_path)]) == 0
    assert "sparse_attention" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "interpreter.json").read_text())["kernels"]) == set(
        devices()["interpreter"].kernels
    )
    assert main(["tune", "--kernel", "nothing"]) == 2
    assert "the table has" in capsys.readouterr().err
