"""The suite under pytest: options, one item per case, outcomes by case name, and an exit code that cannot lie.

Exit codes: 0 pass or partial, 1 fail (with `--strict` partial too), 4 when nothing could be judged: the backend
cannot run here, or no case passed. "0 tests, green" does not exist.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from fnmatch import fnmatchcase

import pytest

from dsv4core.errors import DSV4CoreError, FallbackError
from dsv4core_conformance.case import LEVELS, Case, NotRun, load_cases
from dsv4core_conformance.result import CaseResult, Outcome, verdict
from dsv4core_conformance.subject import Subject, open_subject

_SUBJECT = pytest.StashKey[Subject]()
_CASES = pytest.StashKey[list[Case]]()
_RESULTS = pytest.StashKey[dict[str, CaseResult]]()
_KEY = "dsv4core"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the suite's options."""
    group = parser.getgroup("dsv4core conformance")
    group.addoption("--backend", metavar="NAME", help="backend to judge (default: DSV4CORE_BACKEND)")
    group.addoption("--level", choices=LEVELS, default="core", help="how much to run; each level holds the ones before")
    group.addoption("--device", metavar="DEVICE", help="torch device to run on (default: the backend's own)")
    group.addoption("--case", metavar="GLOB", action="append", default=[], help="run only cases of this name")
    group.addoption("--strict", action="store_true", help="exit 1 when deviations are declared")


def pytest_configure(config: pytest.Config) -> None:
    """Open the backend, or end as a usage error (exit code 4) that says why it cannot run."""
    os.environ["DSV4CORE_FALLBACK"] = "error"
    name = config.getoption("backend") or os.environ.get("DSV4CORE_BACKEND", "")
    if not name:
        raise pytest.UsageError("which backend? type --backend NAME; `dsv4core info` lists them")
    try:
        subject = open_subject(name, config.getoption("device"))
    except DSV4CoreError as error:
        raise pytest.UsageError(f"nothing was run: {error}") from None
    config.stash[_SUBJECT] = subject
    config.stash[_RESULTS] = {}
    levels = LEVELS[: LEVELS.index(config.getoption("level")) + 1]
    globs = config.getoption("case")
    config.stash[_CASES] = [
        case
        for case in load_cases().values()
        if case.level in levels and (not globs or any(fnmatchcase(case.id, glob) for glob in globs))
    ]
    if not config.stash[_CASES]:
        raise pytest.UsageError(f"nothing was run: no case of level {levels[-1]} matches {' or '.join(globs)}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one item per case, named as the case."""
    if metafunc.function.__module__ == "dsv4core_conformance.test_conformance":
        cases = metafunc.config.stash[_CASES]
        metafunc.parametrize("case", cases, ids=[case.id for case in cases])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give every case its time limit."""
    for item in items:
        case = _case(item)
        if case is not None:
            item.add_marker(pytest.mark.timeout(case.limit))


@pytest.fixture
def subject(pytestconfig: pytest.Config) -> Subject:
    """The backend under test, with no errors recorded yet."""
    found = pytestconfig.stash[_SUBJECT]
    found.errors.clear()
    return found


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what earns no tick: ops that are not the backend's own, layouts and features it does not claim."""
    case = _case(item)
    if case is None:
        return
    subject = item.config.stash[_SUBJECT]
    unclaimed, inherited = subject.unclaimed(case), subject.not_own(case)
    if unclaimed:
        pytest.skip(f"unclaimed: {', '.join(unclaimed)}")
    if inherited:
        pytest.skip(f"portable: {', '.join(inherited)}")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.Result[pytest.TestReport], None]:  # type: ignore[name-defined]
    """Turn a phase of a case into its result, and hand it over with the report (also between processes)."""
    report = (yield).get_result()
    case = _case(item)
    if case is None:
        return
    raised = call.excinfo.value if call.excinfo is not None else None
    if isinstance(raised, (NotRun, FallbackError)):
        word = "portable" if isinstance(raised, FallbackError) else "not run"
        report.outcome = "skipped"
        report.longrepr = (str(item.path), 0, f"{word}: {raised}")
    result = _result(item, case, report)
    if result is not None:
        report.user_properties.append((_KEY, result.as_dict()))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Collect results where they arrive (under xdist in the process that started the workers)."""
    for key, value in report.user_properties:
        if key == _KEY and _current is not None:
            result = CaseResult.from_dict(value)
            before = _current.stash[_RESULTS].get(result.id)
            if before is None or before.outcome != "fail":
                _current.stash[_RESULTS][result.id] = result


_current: pytest.Config | None = None


def pytest_sessionstart(session: pytest.Session) -> None:
    """Remember the run, for the hook that is not told which it belongs to."""
    global _current
    _current = session.config


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Turn the results into the exit code."""
    if hasattr(session.config, "workerinput") or exitstatus not in (0, 1, 5):
        return
    found = verdict(session.config.stash[_RESULTS].values())
    strict = session.config.getoption("strict")
    session.exitstatus = {"pass": 0, "partial": 1 if strict else 0, "fail": 1, "not run": 4}[found]


def _result(item: pytest.Item, case: Case, report: pytest.TestReport) -> CaseResult | None:
    """The result that a phase settles: the call always, set-up and clean-up where they end the case."""
    outcome: Outcome
    detail = ""
    if report.outcome == "failed":
        outcome, detail = "fail", report.longreprtext
    elif hasattr(report, "wasxfail"):
        outcome, detail = "declared", str(report.wasxfail)
    elif report.outcome == "skipped":
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        word, _, detail = reason.removeprefix("Skipped: ").partition(": ")
        outcome = word if word in ("portable", "unclaimed", "not run") else "not run"  # type: ignore[assignment]
    elif report.when == "call":
        outcome = "pass"
    else:
        return None
    errors = dict(item.config.stash[_SUBJECT].errors) if report.when == "call" else {}
    return CaseResult(case.id, case.family, case.level, outcome, report.duration, detail, errors, case.ops)


def _case(item: pytest.Item) -> Case | None:
    found = getattr(item, "callspec", None)
    value = found.params.get("case") if found is not None else None
    return value if isinstance(value, Case) else None
