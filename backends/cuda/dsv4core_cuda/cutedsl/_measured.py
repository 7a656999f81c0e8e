"""Which forms of which ops CuTeDSL's kernels are used for: where they measured faster than Triton's."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("measured.csv")
NOISE = 0.98
"""A shorter time counts from here on; what is between is as fast."""
Forms = dict[str, int]
"""Forms of an op, with the number of tokens from which its kernel is used."""


@dataclass(frozen=True)
class Row:
    """Microseconds of both kernels for a form of an op (a layout, a ratio) and a number of tokens."""

    op: str
    form: str
    tokens: int
    cutedsl: float
    triton: float


@cache
def rows(arch: str) -> tuple[Row, ...]:
    """What was measured on an architecture ("sm_90a"); nothing where nothing was."""
    with FILE.open(newline="") as file:
        found = [row for row in csv.reader(file) if row[0] == arch]
    return tuple(Row(op, form, int(n), float(ours), float(theirs)) for _, op, form, n, ours, theirs in found)


def write(arch: str, measured: Iterable[Row]) -> None:
    """Replace the rows of an architecture."""
    with FILE.open(newline="") as file:
        kept = [row for row in csv.reader(file) if row[0] != arch]
    new = [(arch, row.op, row.form, row.tokens, row.cutedsl, row.triton) for row in measured]
    with FILE.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([*kept, *new])


def faster(measured: Iterable[Row]) -> Mapping[str, Forms]:
    """Op -> form -> the fewest tokens that measured faster than Triton and from which on none was slower."""
    chosen: dict[str, Forms] = {}
    lost: set[tuple[str, str]] = set()
    for row in sorted(measured, key=lambda row: -row.tokens):
        if NOISE * row.cutedsl > row.triton:
            lost.add((row.op, row.form))
        if row.cutedsl <= NOISE * row.triton and (row.op, row.form) not in lost:
            chosen.setdefault(row.op, {})[row.form] = row.tokens
    return chosen


def chosen(forms: Forms, form: str, tokens: int) -> bool:
    """Whether a call of a form is for the kernel here."""
    least = forms.get(form)
    return least is not None and tokens >= least
