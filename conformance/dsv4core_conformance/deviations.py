"""Declared deviations: which cases a backend is known to fail, and the rules that keep declarations honest.

A backend declares them through the hook `dsv4core_deviations`. A declared case must fail as declared: when it
passes, the declaration is stale and the run fails. What is declared wrongly ends the run before it starts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from fnmatch import fnmatchcase
from typing import Any

from packaging.version import InvalidVersion, Version

from dsv4core.env import nearest
from dsv4core.errors import DSV4CoreError
from dsv4core.probe import describe
from dsv4core.spec import BackendSpec, Deviation
from dsv4core_conformance.case import Case

KINDS = ("notimpl", "notyet", "never")


class DeviationError(DSV4CoreError):
    """A set of declared deviations breaks a rule; the message lists every breach."""


@dataclass(frozen=True)
class Declared:
    """A deviation with the cases that it names, and whether it speaks about the device of this run."""

    deviation: Deviation
    cases: tuple[str, ...]
    active: bool

    @property
    def text(self) -> str:
        """Kind, reason and address in one line."""
        address = f" ({self.deviation.url})" if self.deviation.url else ""
        return f"{self.deviation.kind}: {self.deviation.reason}{address}"

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain = asdict(self.deviation) | {"devices": list(self.deviation.devices)}
        return plain | {"cases": list(self.cases), "active": self.active}


def collect(spec: BackendSpec, hook: Any) -> list[Deviation]:
    """What all plugins declare for a backend.

    Raises DeviationError for a plugin that fails or returns something else.
    """
    try:
        found = [item for items in hook.dsv4core_deviations(spec=spec) for item in items]
    except Exception as error:  # a plugin may raise anything, and none of it may look like a passed run
        raise DeviationError(
            f"dsv4core_deviations of backend '{spec.name}' failed: {describe(error)}"
        ) from None
    wrong = next((item for item in found if not isinstance(item, Deviation)), None)
    if wrong is not None:
        raise DeviationError(
            f"dsv4core_deviations of backend '{spec.name}' returned {type(wrong).__name__}, "
            "not Deviation objects"
        )
    return found


def resolve(
    deviations: Sequence[Deviation], cases: Iterable[str], devices: Sequence[str], version: str, today: date
) -> list[Declared]:
    """Find the cases of every deviation and check each declaration by itself.

    `cases` are the ids of the whole list, whatever part of it runs; `devices` the names of the device.
    Raises DeviationError with everything that is wrong.
    """
    names = list(cases)
    declared: list[Declared] = []
    problems: list[str] = []
    for deviation in deviations:
        matched = tuple(name for name in names if covers(deviation.case, name))
        problems += [
            f"{deviation.case!r} {text}" for text in _wrong(deviation, matched, names, version, today)
        ]
        declared.append(Declared(deviation, matched, _speaks_of(deviation, devices)))
    _refuse(problems)
    return declared


def refuse_whole_claims(
    declared: Iterable[Declared], cases: Iterable[Case], claims: Mapping[str, Callable[[Case], bool]]
) -> None:
    """Refuse deviations that leave nothing of a claim: it must be dropped instead.

    `cases` are those that apply to the backend; `claims` maps words such as "layout bf16_row" to a test of
    whether a case judges that claim and nothing else of its kind.
    Raises DeviationError.
    """
    waived = {name for item in declared if item.active for name in item.cases}
    applying = list(cases)
    problems: list[str] = []
    for claim, judges in claims.items():
        judged = [case.id for case in applying if judges(case)]
        if judged and waived.issuperset(judged):
            problems.append(
                f"all {len(judged)} cases of {claim} are declared to fail: drop the claim instead"
            )
    _refuse(problems)


def claims_of(
    ops: Iterable[str], layouts: Iterable[str], features: Iterable[str]
) -> dict[str, Callable[[Case], bool]]:
    """Every claim of a backend, with the test of whether a case is about it alone.

    Cases in which the suite judges itself call no backend: they say nothing of a claim.
    """
    found: dict[str, Callable[[Case], bool]] = {}
    for op in sorted(ops):
        found[f"op {op}"] = lambda case, op=op: case.ops == (op,) and case.family != "mutant"
    for layout in sorted(layouts):
        found[f"layout {layout}"] = lambda case, layout=layout: (
            case.layouts == (layout,) and case.family != "mutant"
        )
    for feature in sorted(features):
        found[f"feature {feature}"] = lambda case, feature=feature: feature in case.needs
    return found


def by_case(declared: Iterable[Declared]) -> dict[str, Declared]:
    """The deviation of every case that has one on this device; of several, the first declared."""
    found: dict[str, Declared] = {}
    for item in declared:
        for name in item.cases if item.active else ():
            found.setdefault(name, item)
    return found


def covers(glob: str, name: str) -> bool:
    """Whether a glob, or a name as it is, means a case."""
    return glob == name or fnmatchcase(name, glob)


def as_raised(deviation: Deviation, error: BaseException) -> bool:
    """Whether an exception, or a base class of it, is the one that was declared; any is when none was."""
    return deviation.raises is None or any(kind.__name__ == deviation.raises for kind in type(error).__mro__)


def _wrong(
    deviation: Deviation, matched: Sequence[str], names: Sequence[str], version: str, today: date
) -> Iterable[str]:
    """What is wrong with one declaration, as ends of sentences."""
    if not matched:
        yield f"matches no case{_suggestion(deviation.case, names)}"
    if deviation.kind not in KINDS:
        near = nearest(str(deviation.kind), KINDS)
        yield f"has kind {deviation.kind!r}, not {', '.join(KINDS)}" + (
            f"; did you mean {near}?" if near else ""
        )
    if not deviation.reason.strip():
        yield "gives no reason"
    if deviation.kind in ("notyet", "never") and not (deviation.url or deviation.devices):
        yield f"is {deviation.kind}: give a url or the devices it is about"
    if deviation.url is not None and not re.match(r"https?://\S+$", deviation.url):
        yield f"has the url {deviation.url!r}: it must start with https:// or http://"
    if deviation.raises is not None and not deviation.raises.isidentifier():
        yield f"raises {deviation.raises!r}: give the name of an exception, for example Mismatch"
    if deviation.until is not None:
        try:
            if _passed(deviation.until, version, today):
                yield f"held until {deviation.until}; this is {version} on {today}: renew or remove it"
        except ValueError:
            yield f"has until={deviation.until!r}: give a date (2026-12-31) or a version of dsv4core (0.3)"


def _passed(until: str, version: str, today: date) -> bool:
    """Whether a date or a version is over. Raises ValueError for neither."""
    if re.fullmatch(r"\d{4}-\d\d-\d\d", until):
        return today > date.fromisoformat(until)
    try:
        return Version(Version(version).public) > Version(until)
    except InvalidVersion as error:
        raise ValueError(str(error)) from None


def _speaks_of(deviation: Deviation, devices: Iterable[str]) -> bool:
    if not deviation.devices:
        return True
    words = [word.casefold() for word in devices]
    return any(fnmatchcase(word, glob.casefold()) for glob in deviation.devices for word in words)


def _suggestion(glob: str, names: Sequence[str]) -> str:
    """The case that was probably meant: the same in other letters, else the most similar name."""
    folded = next((name for name in names if fnmatchcase(name.casefold(), glob.casefold())), None)
    near = folded or nearest(glob, names)
    return f"; did you mean {near!r}?" if near else ""


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise DeviationError("deviations: " + "; ".join(problems))
