"""Run the suite against every mutant: caught by the case that is meant to, and by few others.

Without a fault every case runs once and shows which functions it enters and how long it takes. A mutant's own
cases run first; then cases that enter what it changes, cheap ones first, until it is shown that enough of all
cases pass. A case that enters it and was not run counts as failed, so the share that passes is a lower bound.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import torch

import dsv4core
import dsv4core_conformance
from dsv4core_conformance.case import Case, NotRun, load_cases
from dsv4core_conformance.compare import Mismatch
from dsv4core_conformance.mutants.catalogue import MUTANTS
from dsv4core_conformance.mutants.engine import Mutant, applied, resolve
from dsv4core_conformance.mutants.subjects import portable_subject
from dsv4core_conformance.mutants.trace import visited
from dsv4core_conformance.subject import Subject

LEVELS = ("layout", "core")
SHARE = 0.8
"""Of all cases, those that a mutant must leave passing."""

SAMPLE_SECONDS = 1.0
"""Cases that enter a mutant's code run at least this long, so that an exception would show."""

QUICK_SECONDS = 0.05

Outcome = Literal["pass", "caught", "raised", "not run"]


@dataclass(frozen=True)
class Baseline:
    """A case without any fault: how long it takes and which targets of mutants it enters."""

    outcome: Outcome
    seconds: float
    entered: frozenset[str]
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """What became of one mutant. `passing` is the lower bound of the share of cases that still pass."""

    name: str
    rows: tuple[str, ...]
    family: str
    caught_by: str
    detail: str
    passing: float
    ran: int
    failed: tuple[str, ...]
    raised: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def problems(self) -> list[str]:
        """What keeps it from being a good mutant that is well caught; empty if nothing does."""
        found: list[str] = []
        if self.raised:
            found.append(f"raises in {self.raised[0]}")
        if not self.caught_by:
            found.append(f"survives its case of family {self.family}")
        if self.passing < SHARE:
            found.append(f"only {self.passing:.0%} of the cases are known to pass")
        return found


@dataclass
class _Tally:
    failed: dict[str, str] = field(default_factory=dict)
    raised: dict[str, str] = field(default_factory=dict)
    passed: set[str] = field(default_factory=set)


def cases_at_core() -> dict[str, Case]:
    """The cases of the levels that a mutant is measured on."""
    return {name: case for name, case in load_cases().items() if case.level in LEVELS}


def target_names(mutants: Iterable[Mutant]) -> list[str]:
    """The functions that mutants change, each once."""
    return list(dict.fromkeys(target for mutant in mutants for target in mutant.targets))


def baseline(cases: Iterable[Case], targets: Sequence[str]) -> dict[str, Baseline]:
    """Run cases without a fault and watch the targets. Every mutant is about these."""
    prepare()
    subject = portable_subject()
    functions = {resolve(target).__code__: target for target in targets}
    result: dict[str, Baseline] = {}
    for case in cases:
        start = time.process_time()
        with visited(functions) as entered:
            outcome, detail = run_case(subject, case)
        result[case.id] = Baseline(outcome, time.process_time() - start, frozenset(entered), detail)
    return result


def examine(mutant: Mutant, known: Mapping[str, Baseline], *, everything: bool = False) -> Report:
    """Run the suite's cases against one mutant, as far as needed or `everything` that enters its code."""
    prepare()
    cases, start = cases_at_core(), time.process_time()
    counted = [name for name, base in known.items() if base.outcome == "pass"]
    entering = [name for name in counted if known[name].entered & set(mutant.targets)]
    own = sorted(
        (n for n in entering if cases[n].family == mutant.family and fnmatchcase(n, mutant.case)),
        key=lambda name: known[name].seconds,
    )
    tally, untouched, spent = _Tally(), len(counted) - len(entering), 0.0
    with applied(mutant):
        subject = portable_subject()
        for name in own:
            _note(tally, name, *run_case(subject, cases[name]))
            if name in tally.failed and not everything:
                break
        for name in _by_cost(entering, cases, known):
            enough = untouched + len(tally.passed) >= math.ceil(SHARE * len(counted))
            if not everything and enough and spent >= SAMPLE_SECONDS:
                break
            if not everything and len(tally.failed) > (1 - SHARE) * len(counted):
                break
            if name not in tally.failed and name not in tally.passed:
                spent += known[name].seconds
                _note(tally, name, *run_case(subject, cases[name]))
    caught = next((name for name in own if name in tally.failed), "")
    passing = (untouched + len(tally.passed & set(entering))) / max(len(counted), 1)
    return Report(
        mutant.name, mutant.rows, mutant.family, caught, tally.failed.get(caught, ""), passing,
        len(tally.failed) + len(tally.passed), tuple(tally.failed),
        tuple(f"{name}: {text}" for name, text in tally.raised.items()),
        time.process_time() - start,
    )  # fmt: skip


def run_case(subject: Subject, case: Case) -> tuple[Outcome, str]:
    """Run one case: a `Mismatch` tells a wrong backend so, anything else is an exception of its own."""
    try:
        with time_limit(case.limit):
            case.run(subject)
    except Mismatch as found:
        return "caught", str(found)
    except NotRun as reason:
        return "not run", str(reason)
    except Exception as problem:
        return "raised", f"{type(problem).__name__}: {problem}"
    return "pass", ""


@contextmanager
def time_limit(seconds: float) -> Generator[None]:
    """Raise TimeoutError in a block that takes longer, where the system has alarms."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def prepare() -> None:
    """One thread, no fallback that could stand in for a fault, and no value checks.

    A wrong number has to get as far as a comparison; checked mode would stop a NaN on its way.
    """
    torch.set_num_threads(1)
    os.environ["DSV4CORE_FALLBACK"] = "error"
    os.environ["DSV4CORE_CHECK"] = "0"


def save_baseline(path: Path, known: Mapping[str, Baseline]) -> None:
    """Keep a baseline for later runs on the same sources."""
    values = {name: asdict(base) | {"entered": sorted(base.entered)} for name, base in known.items()}
    path.write_text(json.dumps({"sources": sources_digest(), "cases": values}))


def load_baseline(path: Path) -> dict[str, Baseline] | None:
    """A baseline that was kept, or None if there is none of these very sources."""
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError:
        return None
    if content.get("sources") != sources_digest():
        return None
    return {
        name: Baseline(values["outcome"], values["seconds"], frozenset(values["entered"]), values["detail"])
        for name, values in content["cases"].items()
    }


def sources_digest() -> str:
    """A hash over the sources of the core, of the suite, and over the targets watched."""
    found = hashlib.sha256("\n".join(target_names(MUTANTS.values())).encode())
    for package in (dsv4core, dsv4core_conformance):
        for path in sorted(Path(str(package.__file__)).parent.rglob("*.py")):
            if "mutants" not in path.parts:
                found.update(path.read_bytes())
    return found.hexdigest()


def _note(tally: _Tally, name: str, outcome: Outcome, detail: str) -> None:
    if outcome == "pass":
        tally.passed.add(name)
        return
    tally.failed[name] = detail
    if outcome != "caught":
        del tally.failed[name]
        tally.raised[name] = detail


def _by_cost(names: Iterable[str], cases: Mapping[str, Case], known: Mapping[str, Baseline]) -> list[str]:
    """Quick cases first, the cheapest of every family, then the second of each; then the slow ones."""
    ordered = sorted(names, key=lambda name: known[name].seconds)
    families: dict[str, list[str]] = {}
    for name in ordered:
        if known[name].seconds <= QUICK_SECONDS:
            families.setdefault(cases[name].family, []).append(name)
    rounds = zip_longest(*families.values())
    quick = [name for together in rounds for name in together if name is not None]
    return [*quick, *(name for name in ordered if known[name].seconds > QUICK_SECONDS)]
