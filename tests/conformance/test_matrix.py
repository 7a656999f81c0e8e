"""Many reports: what may share a table, what earns a tick, which colour a badge has."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsv4core.cli import main
from dsv4core_conformance.report import markdown, matrix, matrix_page, record, shields

ROOT = Path(__file__).parents[2]
NAMES = ["suite/det/pass", "op/linear/det/pass", "suite/race/streams", "op/toy_op/det/portable"]


@pytest.fixture
def passed(suite: Callable) -> dict[str, Any]:
    return suite(NAMES).report


@pytest.fixture
def partial(suite: Callable) -> dict[str, Any]:
    return changed(
        suite([*NAMES, "op/linear/det/fail"]).report, verdict="partial", cases=("fail", "declared")
    )


def changed(report: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A copy of a report with other words in it."""
    found = copy.deepcopy(report)
    for name, value in more.items():
        if name == "cases":
            for case in found["cases"]:
                case["outcome"] = value[1] if case["outcome"] == value[0] else case["outcome"]
        elif name in ("suite", "backend", "device"):
            found[name] |= value
        else:
            found[name] = value
    return found


def columns(tmp_path: Path, *reports: dict[str, Any]) -> list[matrix.Column]:
    for number, report in enumerate(reports):
        record.save(report, tmp_path / "reports" / f"{number}.json")
    return matrix.read([tmp_path / "reports"])


def test_tiers_never_share_a_table(passed: dict[str, Any], tmp_path: Path) -> None:
    found = columns(tmp_path, *(changed(passed, tier=tier) for tier in matrix.TIERS))
    tables = matrix.tables(found)
    assert [table.tier for table in tables] == list(matrix.TIERS)
    assert all(len(table.columns) == 1 for table in tables)


def test_versions_of_the_suite_are_kept_apart(passed: dict[str, Any], tmp_path: Path) -> None:
    found = columns(
        tmp_path,
        changed(passed, suite={"version": "0.9.0"}),
        changed(passed, suite={"version": "0.10.0"}),
        changed(passed, suite={"version": "0.10.0", "case_list": 7}),
        changed(passed, suite={"version": "0.10.0", "case_list": 7, "case_list_sha256": "other"}),
    )
    assert [(t.suite, t.case_list) for t in matrix.tables(found)] == [
        ("0.10.0", 7),
        ("0.10.0", 7),
        ("0.10.0", passed["suite"]["case_list"]),
        ("0.9.0", passed["suite"]["case_list"]),
    ]


def test_the_later_of_two_reports_counts(passed: dict[str, Any], tmp_path: Path) -> None:
    early, late = (
        changed(passed, started=f"2026-01-0{day}T00:00:00+00:00", verdict=v)
        for day, v in ((1, "fail"), (2, "pass"))
    )
    (table,) = matrix.tables(columns(tmp_path, late, early))
    assert [column.record["verdict"] for column in table.columns] == ["pass"]
    (table,) = matrix.tables(columns(tmp_path, early, changed(late, level="extended")))
    assert len(table.columns) == 2


def test_ticks_are_earned_on_the_device_by_a_whole_run(passed: dict[str, Any], tmp_path: Path) -> None:
    for number, (more, ticks) in enumerate([
        ({}, True), ({"tier": "interpreter"}, False), ({"tier": "foreign-device"}, False),
        ({"tier": "portable"}, False), ({"complete": False}, False),
    ]):  # fmt: skip
        text = markdown.matrix(columns(tmp_path / str(number), changed(passed, **more)))
        assert ("✓" in text) is ticks, more


def test_cells(passed: dict[str, Any], partial: dict[str, Any], tmp_path: Path) -> None:
    passed = changed(passed, suite=partial["suite"])
    failed = changed(
        partial, verdict="fail", cases=("declared", "fail"), backend={"name": "acme", "own_ops": ["linear"]}
    )
    (table,) = matrix.tables(columns(tmp_path, failed, passed, changed(partial, device={"name": "other"})))
    rows = {(kind, name): cells for kind, name, cells in table.rows()}
    assert rows["op", "linear"] == ["✗ 1 of 2", "✓ 1", "1 of 2, 1 declared"]
    assert rows["family", "race"] == ["not run"] * 3
    assert rows["family", "det"] == ["✗ 1 of 3", "✓ 2", "2 of 3, 1 declared"]
    assert rows["op", "sparse_decode"] == ["portable", "", ""]


def test_markdown_names_backend_tier_and_device(passed: dict[str, Any], tmp_path: Path) -> None:
    text = markdown.matrix(
        columns(tmp_path, changed(passed, device={"name": "A GPU"}, tier="foreign-device"))
    )
    assert "tier foreign-device" in text and "| | `cpu` on A GPU |" in text and "| op `linear` | 1 |" in text
    assert markdown.matrix([]) == markdown.NOTHING


@pytest.mark.parametrize(
    ("more", "colour"),
    [
        ({}, "brightgreen"),
        ({"level": "extended"}, "brightgreen"),
        ({"level": "layout"}, "blue"),
        ({"complete": False}, "blue"),
        ({"tier": "foreign-device"}, "blue"),
        ({"tier": "interpreter"}, "blue"),
        ({"tier": "portable"}, "blue"),
        ({"verdict": "partial"}, "yellow"),
        ({"verdict": "partial", "tier": "interpreter"}, "yellow"),
        ({"verdict": "fail"}, "red"),
        ({"verdict": "fail", "tier": "portable"}, "red"),
        ({"verdict": "not run"}, "lightgrey"),
    ],
)
def test_badges(passed: dict[str, Any], tmp_path: Path, more: dict[str, Any], colour: str) -> None:
    (column,) = columns(tmp_path, changed(passed, **more))
    found = shields.badge(column)
    assert set(found) == {"schemaVersion", "label", "message", "color"} and found["schemaVersion"] == 1
    assert found["color"] == colour
    tier = more.get("tier", "device")
    assert (tier in found["label"]) is (tier != "device")
    assert found["message"].startswith(more.get("verdict", "pass"))


def test_badges_are_files_by_backend_device_and_tier(passed: dict[str, Any], tmp_path: Path) -> None:
    found = columns(
        tmp_path,
        changed(passed, device={"name": "Some (R) GPU"}),
        changed(passed, device={"name": "Some (R) GPU"}, tier="interpreter"),
        changed(passed, device={"name": "Some (R) GPU"}, suite={"version": "0.0.1"}, verdict="fail"),
    )
    written = shields.write(found, tmp_path / "badges")
    assert sorted(path.name for path in written) == ["cpu-some-r-gpu-interpreter.json", "cpu-some-r-gpu.json"]
    assert json.loads((tmp_path / "badges" / "cpu-some-r-gpu.json").read_text())["color"] == "brightgreen"


def test_page_of_many_runs(passed: dict[str, Any], partial: dict[str, Any], tmp_path: Path) -> None:
    page = matrix_page.render(
        columns(tmp_path, passed, changed(partial, backend={"name": "<acme>"}, tier="interpreter"))
    )
    assert (
        "tier device" in page
        and "tier interpreter" in page
        and "&lt;acme&gt;" in page
        and "<acme>" not in page
    )
    assert "http" not in page and "<script" not in page
    assert markdown.NOTHING in matrix_page.render([])


def test_command(passed: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r.json"
    record.save(passed, file)
    capsys.readouterr()
    assert main(["matrix", str(file)]) == 0
    assert capsys.readouterr().out.strip() == markdown.matrix(matrix.read([file]))
    assert (
        main(["matrix", str(file), "--html", str(tmp_path / "m.html"), "--shields", str(tmp_path / "s")]) == 0
    )
    assert (
        capsys.readouterr().out == ""
        and (tmp_path / "m.html").exists()
        and len(list((tmp_path / "s").iterdir())) == 1
    )
    assert main(["matrix", "--json", str(file)]) == 0
    (table,) = json.loads(capsys.readouterr().out)
    assert table["tier"] == "device" and {"kind": "op", "name": "linear", "cells": ["✓ 1"]} in table["rows"]


def test_command_on_a_terminal_without_the_letters(passed: dict[str, Any], tmp_path: Path) -> None:
    record.save(passed, tmp_path / "r.json")
    command = [sys.executable, "-m", "dsv4core", "matrix", str(tmp_path / "r.json")]
    done = subprocess.run(command, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True)
    assert done.returncode == 0 and b"| \\u2713 1 |" in done.stdout


def test_command_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["matrix"]) == 2 and "no report" in capsys.readouterr().err
    (tmp_path / "x.json").write_text("{}")
    assert main(["matrix", str(tmp_path / "x.json")]) == 2 and "schema None" in capsys.readouterr().err
    (tmp_path / "README.md").write_text("nothing\n")
    assert main(["matrix", "--readme", str(tmp_path / "README.md")]) == 2
    assert "<!-- matrix -->" in capsys.readouterr().err
    assert main(["matrix", "--readme", str(tmp_path / "none.md")]) == 2
    assert "none.md" in capsys.readouterr().err


def test_readme_block(passed: dict[str, Any], tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- matrix -->\nold\n<!-- /matrix -->\nafter\n")
    assert main(["matrix", "--readme", str(readme), "--check"]) == 1
    assert main(["matrix", "--readme", str(readme)]) == 0
    assert readme.read_text() == f"before\n<!-- matrix -->\n{markdown.NOTHING}\n<!-- /matrix -->\nafter\n"
    record.save(passed, tmp_path / "conformance" / "reports" / "0.1.0" / "cpu.json")
    assert main(["matrix", "--readme", str(readme), "--check"]) == 1
    assert main(["matrix", "--readme", str(readme)]) == 0
    assert main(["matrix", "--readme", str(readme), "--check"]) == 0
    text = readme.read_text()
    assert "[✓ pass](conformance/reports/0.1.0/cpu.json)" in text and text.endswith(
        "<!-- /matrix -->\nafter\n"
    )


def test_a_readme_names_backends_without_a_report(passed: dict[str, Any], tmp_path: Path) -> None:
    """A run on another vendor's device is not one of their own; other distributions' backends stay out."""
    ours = {"name": "cpu", "distribution": "dsv4core"}
    foreign = changed(passed, backend=ours | {"name": "xpu"}, tier="foreign-device")
    found = columns(tmp_path, changed(passed, backend=ours), foreign)
    text = markdown.readme(found, tmp_path)
    silent = [line.split("`")[1] for line in text.splitlines() if "| not run: no report |" in line]
    assert silent == ["cuda", "rocm", "xpu"]
    elsewhere = columns(tmp_path / "acme", changed(passed, backend=ours | {"distribution": "acme"}))
    assert "no report" not in markdown.readme(elsewhere, tmp_path)


def test_the_readme_shows_the_committed_reports() -> None:
    readme = ROOT / "README.md"
    assert markdown.BEGIN in readme.read_text()
    assert main(["matrix", "--readme", str(readme), "--check"]) == 0, "dsv4core matrix --readme README.md"
    for column in matrix.read([ROOT / "conformance" / "reports"]):
        assert column.path.parent.name == column.record["suite"]["version"]
        assert column.path.stem == column.slug and column.record["complete"]
