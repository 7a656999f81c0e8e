"""The suite under pytest: options, one item per case, outcomes by case name, an honest exit code.

Exit codes: 0 pass or partial, 1 fail (with pytest's `--strict` partial too), 4 when nothing could be judged:
the backend cannot run here, its deviations break a rule, or no case passed. "0 tests, green" does not exist.
"""

from __future__ import annotations

import argparse
import os
import traceback
from collections.abc import Generator
from datetime import date
from pathlib import Path

import pytest
import torch

import dsv4core
from dsv4core.errors import DSV4CoreError, FallbackError
from dsv4core.ops import BoundOp
from dsv4core.registry import get_registry
from dsv4core_conformance import deviations, outcome
from dsv4core_conformance.case import LEVELS, Case, NotRun, Unclaimed, load_cases
from dsv4core_conformance.deviations import Declared, covers
from dsv4core_conformance.devices import device_words
from dsv4core_conformance.inputs import vast
from dsv4core_conformance.recorder import RECORDER, Recorder
from dsv4core_conformance.subject import Subject, open_subject

_SUBJECT = pytest.StashKey[Subject]()
_CASES = pytest.StashKey[list[Case]]()
_DECLARED = pytest.StashKey[dict[str, Declared]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the suite's options."""
    group = parser.getgroup("dsv4core conformance")
    group.addoption("--backend", metavar="NAME", help="backend to judge (default: DSV4CORE_BACKEND)")
    group.addoption(
        "--level", choices=LEVELS, default="core", help="how much to run; each level holds the ones before"
    )
    group.addoption("--device", metavar="DEVICE", help="torch device to run on (default: the backend's own)")
    group.addoption("--case", metavar="GLOB", action="append", default=[], help="run only cases of this name")
    _add_file(group, "report", "write the report as JSON, from which a run can be repeated")
    _add_file(group, "html", "write the report as one HTML page")


def pytest_configure(config: pytest.Config) -> None:
    """Open the backend, or end as a usage error (exit code 4) that says why it cannot run."""
    if not config.pluginmanager.hasplugin("timeout"):
        raise pytest.UsageError('cases have time limits: python -m pip install "dsv4core[conformance]"')
    os.environ["DSV4CORE_FALLBACK"] = "error"
    name = config.getoption("backend") or os.environ.get("DSV4CORE_BACKEND", "")
    if not name:
        raise pytest.UsageError("which backend? type --backend NAME; `dsv4core info` lists them")
    everything = load_cases()
    try:
        subject = open_subject(name, config.getoption("device"))
        declared = _declared(subject, list(everything.values()))
    except DSV4CoreError as error:
        raise pytest.UsageError(f"nothing was run: {error}") from None
    # Cases are small: threads that wait for each other cost more than they bring. DET runs several.
    torch.set_num_threads(1)
    levels = LEVELS[: LEVELS.index(config.getoption("level")) + 1]
    globs = config.getoption("case")
    of_level = [case for case in everything.values() if case.level in levels]
    cases = [case for case in of_level if not globs or any(covers(glob, case.id) for glob in globs)]
    if not cases:
        raise pytest.UsageError(
            f"nothing was run: no case of level {levels[-1]} matches {' or '.join(globs) or '*'}"
        )
    for option in ("report", "html"):  # a run takes minutes: what cannot be kept is said before
        _writable(option, config.getoption(f"dsv4core_{option}"))
    config.stash[_SUBJECT] = subject
    config.stash[_CASES] = cases
    config.stash[_DECLARED] = {} if config.option.runxfail else deviations.by_case(declared)
    if not hasattr(config, "workerinput"):
        recorder = Recorder(config, subject, {case.id: case for case in of_level}, list(everything), declared)
        config.pluginmanager.register(recorder, RECORDER)


def _writable(option: str, file: str | None) -> None:
    """Make the folder of a file that is to be written; end as a usage error where it cannot be."""
    if not file:
        return
    path = Path(file)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(path if path.exists() else path.parent, os.W_OK) else "no permission"
    except OSError as error:
        reason = str(error)
    if reason or path.is_dir():
        raise pytest.UsageError(f"nothing was run: --{option} {file}: {reason or 'a folder, not a file'}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one item per case, named as the case."""
    if metafunc.function.__module__ == "dsv4core_conformance.test_conformance":
        cases = metafunc.config.stash[_CASES]
        metafunc.parametrize("case", cases, ids=[case.id for case in cases])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give every case its time limit: a minute more where kernels are compiled first or interpreted."""
    subject = config.stash.get(_SUBJECT, None)
    kernels = subject is not None and (subject.device.type != "cpu" or subject.tier == "interpreter")
    more = 60.0 if kernels else 0.0
    for item in items:
        case = _case(item)
        if case is not None:
            item.add_marker(pytest.mark.timeout(case.limit + more))


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


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Let other processes have the memory of a device that a case filled."""
    if _case(item) is not None:
        vast.release()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a phase of a case into its result, and hand it over with the report (also between processes)."""
    report = yield
    case = _case(item)
    if case is None:
        return report
    raised = call.excinfo.value if call.excinfo is not None else None
    declared = item.config.stash[_DECLARED].get(case.id)
    leaves = (NotRun, FallbackError, pytest.skip.Exception, pytest.xfail.Exception)
    if isinstance(raised, leaves) and _by_an_op(raised):
        report.outcome = "failed"
        report.__dict__.pop("wasxfail", None)  # pytest's own word for a failure that was expected
        report.longrepr = f"an op must not leave its own case out: {type(raised).__name__}: {raised}"
    elif isinstance(raised, (NotRun, FallbackError)):
        outcome.skip(report, _left_out(raised), str(raised))
    if declared is not None and call.when == "call" and not report.skipped:
        outcome.declare(report, declared, raised)
    errors = item.config.stash[_SUBJECT].errors if call.when == "call" else {}
    result = outcome.settle(case, report, raised, errors)
    if result is not None:
        setattr(report, outcome.ATTRIBUTE, result.as_dict())
        item.user_properties += [("case", case.id), ("family", case.family), ("outcome", result.outcome)]
    return report


def _by_an_op(raised: BaseException) -> bool:
    """Whether the implementation of an op raised it, and neither a case nor the stand-in of a missing op."""
    codes = [frame.f_code for frame, _ in traceback.walk_tb(raised.__traceback__)]
    call = BoundOp.call.__code__
    return call in codes and codes[-1].co_filename != call.co_filename


def _left_out(raised: NotRun | FallbackError) -> str:
    """The outcome of a case that turns out to judge nothing."""
    if isinstance(raised, FallbackError):
        return "portable"
    return "unclaimed" if isinstance(raised, Unclaimed) else "not run"


def _add_file(group: pytest.OptionGroup, name: str, text: str) -> None:
    """An option for a file. Other plugins use such short names too: the long one is always there."""
    long = f"--dsv4core-{name}"
    try:
        group.addoption(f"--{name}", long, dest=f"dsv4core_{name}", metavar="FILE", help=text)
    except (ValueError, argparse.ArgumentError):
        group.addoption(long, dest=f"dsv4core_{name}", metavar="FILE", help=text)


def _declared(subject: Subject, cases: list[Case]) -> list[Declared]:
    """The deviations of the backend on this device, checked. Raises DeviationError."""
    registry = get_registry()
    found = deviations.collect(subject.backend.spec, registry.hook)
    if not found:
        return []
    names = [case.id for case in cases]
    words = device_words(subject.device)
    declared = deviations.resolve(found, names, words, dsv4core.__version__, date.today())
    applying = [case for case in cases if not subject.unclaimed(case) and not subject.not_own(case)]
    claims = deviations.claims_of(subject.own_ops, subject.layouts, subject.features)
    deviations.refuse_whole_claims(declared, applying, claims)
    return declared


def _case(item: pytest.Item) -> Case | None:
    found = getattr(item, "callspec", None)
    value = found.params.get("case") if found is not None else None
    return value if isinstance(value, Case) else None
