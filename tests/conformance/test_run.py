"""A run of the suite: outcomes, exit codes, what is refused before anything runs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dsv4core import get_backend
from dsv4core.backend import Backend
from dsv4core_conformance import subject

GOOD = ["suite/det/pass", "op/linear/det/pass"]
OTHERS = ["suite/race/streams", "suite/det/unclaimed", "op/toy_op/det/portable"]


def test_outcomes_and_exit_code(suite: Callable) -> None:
    ran = suite([*GOOD, *OTHERS])
    assert ran.code == 0 and ran.report["verdict"] == "pass"
    assert ran.outcomes() == {
        "suite/det/pass": "pass",
        "op/linear/det/pass": "pass",
        "suite/race/streams": "not run",
        "suite/det/unclaimed": "unclaimed",
        "op/toy_op/det/portable": "portable",
    }
    assert ran.case("suite/race/streams")["detail"] == "needs two streams"
    assert ran.case("suite/det/unclaimed")["detail"] == "no_such_layout"
    assert ran.case("op/toy_op/det/portable")["detail"] == "toy_op"


@pytest.mark.parametrize(
    ("names", "code", "verdict"),
    [
        ([*GOOD, "op/linear/det/fail"], 1, "fail"),
        ([*GOOD, "suite/det/crash"], 1, "fail"),
        (["op/toy_op/det/portable"], 4, "not run"),
        (["suite/race/streams", "suite/det/unclaimed"], 4, "not run"),
    ],
)
def test_exit_code_tells_the_verdict(suite: Callable, names: list[str], code: int, verdict: str) -> None:
    ran = suite(names)
    assert (ran.code, ran.report["verdict"], ran.report["exit_code"]) == (code, verdict, code)


def test_an_op_cannot_leave_its_own_case_out(suite: Callable) -> None:
    ran = suite([*GOOD, "op/linear/det/left_out", "op/linear/det/missing"])
    assert ran.code == 1 and ran.report["verdict"] == "fail"
    assert ran.outcomes()["op/linear/det/left_out"] == "fail"
    assert "not for 5 heads" in ran.case("op/linear/det/left_out")["detail"]
    assert ran.outcomes()["op/linear/det/missing"] == "portable"


def test_an_op_cannot_declare_its_own_failure(suite: Callable) -> None:
    ran = suite([*GOOD, "op/linear/det/expected"])
    assert ran.code == 1 and ran.outcomes()["op/linear/det/expected"] == "fail"
    assert "as everybody knows" in ran.case("op/linear/det/expected")["detail"]


def test_an_op_cannot_end_the_session_with_a_pass(suite: Callable) -> None:
    ran = suite([*GOOD, "op/linear/det/exit", "suite/det/crash"])
    assert ran.code == 1 and ran.report["verdict"] == "fail" and not ran.report["complete"]
    assert ran.outcomes()["op/linear/det/exit"] == "fail" and "suite/det/crash" not in ran.outcomes()


def test_a_run_of_portable_ops_only_has_tier_portable(suite: Callable) -> None:
    assert suite(["op/toy_op/det/portable"]).report["tier"] == "portable"
    assert suite(GOOD).report["tier"] == "device"


def test_a_failure_outside_the_cases_is_no_pass(suite: Callable, tmp_path: Path) -> None:
    (tmp_path / "test_else.py").write_text("def test_else():\n    assert False\n")
    ran = suite(GOOD, str(tmp_path / "test_else.py"))
    assert ran.code == 1 and ran.report["verdict"] == "pass" and ran.report["exit_code"] == 1


def test_a_case_that_hangs_fails(suite: Callable) -> None:
    ran = suite([*GOOD, "suite/det/hang"])
    assert ran.code == 1 and ran.outcomes()["suite/det/hang"] == "fail"
    assert "Timeout" in ran.case("suite/det/hang")["detail"]


def test_no_limits_no_run(suite: Callable) -> None:
    ran = suite(GOOD, "-p", "no:timeout")
    assert ran.code == 4 and 'pip install "dsv4core[conformance]"' in ran.out


def test_levels_and_globs(suite: Callable) -> None:
    names = [*GOOD, "layout/fp8_ds_mla/insert/pad", "suite/det/long"]
    assert list(suite(names, "--level", "layout").outcomes()) == ["layout/fp8_ds_mla/insert/pad"]
    assert len(suite(names, "--level", "extended").outcomes()) == 4
    ran = suite(names, "--case", "op/*")
    assert list(ran.outcomes()) == ["op/linear/det/pass"] and ran.report["complete"] is False
    assert suite(names).report["complete"] is True


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--backend", "cuda"], "cuda"),
        (["--backend", "cpuu"], "cpuu"),
        (["--case", "no/such/*"], "no case of level core matches no/such/*"),
        (["--dsv4core-html", f"{__file__}/x.html"], "nothing was run: --html"),
        (["--dsv4core-html", str(Path(__file__).parent)], "a folder, not a file"),
    ],
)
def test_what_cannot_run_exits_4_with_reasons(suite: Callable, words: list[str], text: str) -> None:
    ran = suite(GOOD, *words)
    assert ran.code == 4 and text in ran.out and not ran.report


def test_a_layout_that_there_is_not_exits_4(suite: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    real = get_backend("cpu")
    spec = replace(real.spec, layouts=(*real.spec.layouts, "fp8_ds_mal"))
    monkeypatch.setattr(subject, "get_backend", lambda name: Backend(spec, real.provider, real.provider.ops))
    ran = suite(GOOD)
    assert ran.code == 4 and "claims layouts that there are not: fp8_ds_mal" in ran.out


def test_no_backend_named(suite: Callable) -> None:
    ran = suite(GOOD, "--backend", "")
    assert ran.code == 4 and "--backend NAME" in ran.out


def test_nothing_selected_by_pytest_is_no_pass(suite: Callable) -> None:
    assert suite(GOOD, "-k", "nothing_like_this").code == 4


def test_the_failing_byte_is_named(suite: Callable) -> None:
    ran = suite([*GOOD, "layout/fp8_ds_mla/insert/pad"])
    found = ran.case("layout/fp8_ds_mla/insert/pad")
    assert "page 1" in found["detail"] and "expected 00, got a5" in found["detail"]
    facts = found["facts"]
    assert (facts["page"], facts["byte"], facts["expected"], facts["got"]) == (1, 64 * 576 + 7, "00", "a5")
    assert facts["ranges"] == [[64 * 576 + 7] * 2] and len(facts["page_hex"]) == 2 * 37_440


def test_collecting_is_no_run(suite: Callable) -> None:
    ran = suite(GOOD, "--collect-only", "-q")
    assert ran.code == 0 and not ran.report and "suite/det/pass" in ran.out


def test_a_plugin_that_took_our_option(
    suite: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "took_it.py").write_text("def pytest_addoption(parser):\n    parser.addoption('--html')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    ran = suite(GOOD, "-p", "took_it", "--html", "theirs.html", "--dsv4core-html", "ours.html")
    assert ran.code == 0 and (tmp_path / "ours.html").exists() and not (tmp_path / "theirs.html").exists()


def test_summary(suite: Callable) -> None:
    out = suite([*GOOD, *OTHERS, "op/linear/det/fail"]).out
    assert "tier device, level core" in out and "verdict: fail" in out
    line = (
        "python -m pytest --pyargs dsv4core_conformance --backend cpu --level core --case op/linear/det/fail"
    )
    assert line in out
    assert next(row.split() for row in out.splitlines() if row.startswith("race")) == ["race", *"-----1"]


def test_junit_names_case_family_and_outcome(suite: Callable, tmp_path: Path) -> None:
    suite([*GOOD, *OTHERS, "op/linear/det/fail"], f"--junitxml={tmp_path / 'junit.xml'}")
    found = {}
    for node in ElementTree.parse(tmp_path / "junit.xml").iter("testcase"):
        values = {item.get("name"): item.get("value") for item in node.iter("property")}
        found[values["case"]] = (values["family"], values["outcome"])
    assert found["op/linear/det/fail"] == ("det", "fail")
    assert found["suite/race/streams"] == ("race", "not run")
    assert len(found) == 6


def test_workers_report_to_the_process_that_started_them(command: Callable) -> None:
    """Also a case that takes its worker with it is a failure, by its own name."""
    names = [*GOOD, *OTHERS, "op/linear/det/fail", "suite/det/gone"]
    words = ["-m", "pytest", "-p", "toy", "--pyargs", "dsv4core_conformance", "--backend", "cpu", "-n", "2"]
    done: subprocess.CompletedProcess[str] = command(*words, "--report", "r.json", cases=names)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAIL suite/det/gone" in done.stdout and "FAIL op/linear/det/fail" in done.stdout
    assert "verdict: fail" in done.stdout


def test_another_project_keeps_its_backend_option(command: Callable, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "def pytest_addoption(parser):\n    parser.addoption('--backend')\n    parser.addoption('--level')\n"
    )
    (tmp_path / "test_it.py").write_text(
        "def test_it(pytestconfig):\n    assert pytestconfig.getoption('backend') == 'theirs'\n"
    )
    done = command("-m", "pytest", "-q", "--backend", "theirs")
    assert done.returncode == 0, done.stdout + done.stderr
