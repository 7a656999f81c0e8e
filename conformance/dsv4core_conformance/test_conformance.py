"""The suite's one test: every case, by its own name."""

from __future__ import annotations

from dsv4core_conformance.case import Case
from dsv4core_conformance.subject import Subject


def test_case(case: Case, subject: Subject) -> None:
    """Run one case; `plugin` parametrises it with the cases of the level and fills in the backend."""
    case.run(subject)
