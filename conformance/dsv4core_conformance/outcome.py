"""From pytest's reports to outcomes: what was skipped and why, what failed as declared, what failed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from dsv4core_conformance.case import Case
from dsv4core_conformance.compare import Mismatch
from dsv4core_conformance.contracts import CONTRACTS
from dsv4core_conformance.deviations import Declared, as_raised
from dsv4core_conformance.result import CaseResult, Outcome

ATTRIBUTE = "dsv4core_case"
"""Where a report carries the result of its case; pytest-xdist sends it along with the rest."""

_HERE = Path(__file__).parent
_SKIPPED: dict[str, Outcome] = {"portable": "portable", "unclaimed": "unclaimed", "not run": "not run"}
_DETAIL_LIMIT = 8_000


def skip(report: pytest.TestReport, word: str, reason: str) -> None:
    """Make a report say that its case was left out, in the form that pytest shows as a skip."""
    report.outcome = "skipped"
    report.longrepr = (str(_HERE / "test_conformance.py"), 0, f"{word}: {reason}")
    report.__dict__.pop("wasxfail", None)


def declare(report: pytest.TestReport, declared: Declared, raised: BaseException | None) -> None:
    """Make a report of a declared case say whether it failed as declared; a surprise pass is a failure."""
    if raised is None:
        report.outcome = "failed"
        report.longrepr = (
            f"stale deviation {declared.deviation.case!r}: the case passes ({declared.text}); remove it"
        )
    elif as_raised(declared.deviation, raised):
        report.outcome = "skipped"
        report.wasxfail = declared.text  # type: ignore[attr-defined]
    else:
        report.outcome = "failed"
        report.longrepr = (
            f"deviation {declared.deviation.case!r} declares {declared.deviation.raises}, "
            f"raised was {type(raised).__name__}: {raised}"
        )


def settle(
    case: Case, report: pytest.TestReport, raised: BaseException | None, errors: Mapping[str, float]
) -> CaseResult | None:
    """The result that a phase settles: the call always, set-up and clean-up where they end the case."""
    outcome: Outcome
    detail = ""
    if report.outcome == "failed":
        outcome, detail = "fail", _text(report, raised)
    elif hasattr(report, "wasxfail"):
        outcome, detail = "declared", str(report.wasxfail)
    elif report.outcome == "skipped":
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        word, _, detail = reason.removeprefix("Skipped: ").partition(": ")
        outcome = _SKIPPED.get(word, "not run")
        detail = detail if word in _SKIPPED else reason
    elif report.when == "call":
        outcome = "pass"
    else:
        return None
    facts = dict(getattr(raised, "facts", {})) if outcome in ("fail", "declared") else {}
    measured = {op: float(error) for op, error in errors.items()}
    if "ratio" in facts and len(case.ops) == 1 and CONTRACTS[case.ops[0]].bound:
        measured[case.ops[0]] = facts["ratio"] * CONTRACTS[case.ops[0]].bound
    return CaseResult(
        case.id,
        case.family,
        case.level,
        outcome,
        report.duration,
        detail,
        measured,
        case.ops,
        case.layouts,
        facts,
    )


def lost(case: Case, text: str) -> CaseResult:
    """The result of a case whose process ended with it."""
    return CaseResult(case.id, case.family, case.level, "fail", 0.0, clean(text), {}, case.ops, case.layouts)


def clean(text: str) -> str:
    """A text without the folder that this package happens to be in, and not too long."""
    for folder in (_HERE.parent, _HERE.parent.parent):
        text = text.replace(f"{folder}/", "")
    return text if len(text) <= _DETAIL_LIMIT else text[:_DETAIL_LIMIT] + "\n[...]"


def _text(report: pytest.TestReport, raised: BaseException | None) -> str:
    """A mismatch's own words; for what should not have been raised at all, also where it came from."""
    if raised is None or isinstance(report.longrepr, str):  # a sentence about a deviation
        return clean(report.longreprtext)
    if isinstance(raised, Mismatch) and report.when == "call":
        return clean(str(raised))
    return clean(f"{type(raised).__name__}: {raised}\n\n{report.longreprtext}")
