"""What became of a case, and of a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Outcome = Literal["pass", "fail", "declared", "portable", "unclaimed", "not run"]
"""`declared`: fails as the backend says it does. `portable`: judges an op that is not the backend's own.
`unclaimed`: needs a layout or a feature that the backend does not claim. `not run`: needs what is not
here."""

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

Verdict = Literal["pass", "partial", "fail", "not run"]


@dataclass(frozen=True)
class CaseResult:
    """One case's outcome.

    `errors` are worst errors by op in the contract's units, `detail` is the failure's text, `facts` the same
    in JSON values where it has a place: page, byte and layout, or the error in units of its bound.
    """

    id: str
    family: str
    level: str
    outcome: Outcome
    seconds: float
    detail: str = ""
    errors: dict[str, float] = field(default_factory=dict)
    ops: tuple[str, ...] = ()
    layouts: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return plain | {"ops": list(self.ops), "layouts": list(self.layouts)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CaseResult:
        """The inverse of `as_dict`, also where what is empty was left out."""
        lists = {name: tuple(values.get(name, ())) for name in ("ops", "layouts")}
        return cls(**{**values, **lists})


def verdict(results: Iterable[CaseResult]) -> Verdict:
    """`fail` if a case failed, `not run` if none passed, `partial` if one is declared, else `pass`."""
    found = {result.outcome for result in results}
    if "fail" in found:
        return "fail"
    if "pass" not in found:
        return "not run"
    return "partial" if "declared" in found else "pass"


def count(results: Iterable[CaseResult]) -> dict[str, int]:
    """Cases by outcome, every outcome present."""
    found = dict.fromkeys(OUTCOMES, 0)
    for result in results:
        found[result.outcome] += 1
    return found
