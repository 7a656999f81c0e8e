"""Which forms of which ops CuTeDSL's kernels are used for: where they measured faster than Triton's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("measured.json")


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
    found = json.loads(FILE.read_text()).get(arch, {"rows": []})
    return tuple(Row(*row) for row in found["rows"])


def faster(measured: tuple[Row, ...]) -> Mapping[str, frozenset[str]]:
    """Op -> its forms that take less time than Triton's at every number of tokens that was measured."""
    slower = {(row.op, row.form) for row in measured if row.cutedsl >= row.triton}
    chosen: dict[str, frozenset[str]] = {}
    for row in measured:
        if (row.op, row.form) not in slower:
            chosen[row.op] = chosen.get(row.op, frozenset()) | {row.form}
    return chosen
