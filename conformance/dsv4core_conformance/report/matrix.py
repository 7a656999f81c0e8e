"""Many reports side by side: which may stand in one table, and what a cell of it says.

Reports of different versions of the suite or of its case list are kept apart, and so are tiers: kernels that
were interpreted, or that ran on another vendor's device, say nothing about the device they were written for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsv4core_conformance.case import FAMILIES
from dsv4core_conformance.report.record import Record, load, results
from dsv4core_conformance.result import CaseResult, count

TIERS = ("device", "foreign-device", "interpreter", "portable")


@dataclass(frozen=True)
class Column:
    """One report in a table, and the file that it was read from."""

    record: Record
    path: Path
    cases: tuple[CaseResult, ...]

    @property
    def key(self) -> tuple[str, ...]:
        """What makes two reports be about the same thing; the later of two replaces the earlier."""
        backend = self.record["backend"]
        about = (backend["name"], backend["distribution"], backend["version"])
        return (*about, self.record["tier"], self.record["device"]["name"], self.record["level"])

    @property
    def slug(self) -> str:
        """The report's name as a file: backend, device, and the tier where it is not the device's own."""
        tier = "" if self.record["tier"] == "device" else f"-{self.record['tier']}"
        return f"{_slug(self.record['backend']['name'])}-{_slug(self.record['device']['name'])}{tier}"

    @property
    def ticks(self) -> bool:
        """Whether a pass of this report earns a tick: on the device itself, and everything was run."""
        return self.record["tier"] == "device" and self.record["complete"]


@dataclass(frozen=True)
class Table:
    """Reports of one version of the suite and one tier."""

    suite: str
    case_list: int
    tier: str
    columns: tuple[Column, ...]

    def rows(self) -> list[tuple[str, str, list[str]]]:
        """("family" or "op", name, one cell per column), in the order of the suite."""
        found: list[tuple[str, str, list[str]]] = []
        present = {case.family for column in self.columns for case in column.cases}
        for family in [name for name in FAMILIES if name in present] + sorted(present - set(FAMILIES)):
            cells = [cell(column, [c for c in column.cases if c.family == family]) for column in self.columns]
            found.append(("family", family, cells))
        ops = dict.fromkeys(op for column in self.columns for op in column.record["backend"]["ops"])
        for op in ops:
            found.append(("op", op, [_op_cell(column, op) for column in self.columns]))
        return found


def read(paths: Iterable[Path]) -> list[Column]:
    """Read reports; a folder stands for every report below it. Raises ConfigError for what is no report."""
    files: list[Path] = []
    for path in paths:
        files += sorted(path.glob("**/*.json")) if path.is_dir() else [path]
    found: list[Column] = []
    for file in files:
        record = load(file)
        found.append(Column(record, file, tuple(results(record))))
    return found


def tables(columns: Iterable[Column]) -> list[Table]:
    """Reports in tables that may be read across: newest suite first, tiers in their order, newest list."""
    groups: dict[tuple[str, int, str, str], dict[tuple[str, ...], Column]] = {}
    for column in sorted(columns, key=lambda item: item.record["started"]):
        suite = column.record["suite"]
        group = suite["version"], suite["case_list"], suite["case_list_sha256"], column.record["tier"]
        groups.setdefault(group, {})[column.key] = column
    started = {key: max(c.record["started"] for c in groups[key].values()) for key in groups}
    latest = sorted(groups, key=started.__getitem__, reverse=True)
    ordered = sorted(latest, key=lambda key: (_newest_first(key[0]), -key[1], TIERS.index(key[3])))
    return [
        Table(key[0], key[1], key[3], tuple(groups[key][name] for name in sorted(groups[key])))
        for key in ordered
    ]


def cell(column: Column, cases: Sequence[CaseResult]) -> str:
    """What became of some cases of a report, in a few words; a tick only where it is earned."""
    numbers = count(cases)
    judged = numbers["pass"] + numbers["fail"] + numbers["declared"]
    if not judged:
        return next((word for word in ("portable", "unclaimed", "not run") if numbers[word]), "")
    if numbers["fail"]:
        return f"✗ {numbers['fail']} of {judged}"
    if numbers["declared"]:
        return f"{numbers['pass']} of {judged}, {numbers['declared']} declared"
    rest = f", {numbers['not run']} not run" if numbers["not run"] else ""
    return f"{'✓ ' if column.ticks else ''}{numbers['pass']}{rest}"


def _op_cell(column: Column, op: str) -> str:
    if op not in column.record["backend"]["own_ops"]:
        return "portable"
    return cell(column, [case for case in column.cases if op in case.ops])


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unknown"


def _newest_first(version: str) -> tuple[int, ...]:
    return tuple(-int(part) for part in re.findall(r"\d+", version))
