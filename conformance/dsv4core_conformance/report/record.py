"""Reports as JSON, schema 1: reading and writing them. `build` makes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dsv4core.errors import ConfigError
from dsv4core_conformance.result import CaseResult

SCHEMA = 1
Record = dict[str, Any]
NEEDED = ("suite", "backend", "device", "tier", "level", "complete", "verdict", "cases")
"""What every report of this schema holds, and tables are made of."""


def save(record: Record, path: Path) -> None:
    """Write a record, a case in a line of its own; the same record gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rest = {name: value for name, value in record.items() if name != "cases"}
    head = json.dumps(rest | {"cases": []}, indent=1, allow_nan=False)
    cases = ",\n".join(f"  {json.dumps(values, allow_nan=False)}" for values in record["cases"])
    text = head.removesuffix("[]\n}") + f"[\n{cases}\n ]\n}}\n"
    path.write_text(text, encoding="utf-8")


def load(path: Path) -> Record:
    """Read a record.

    Raises ConfigError for a file that is none, or of a schema that this version does not know.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as a conformance report: {error}") from None
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA:
        raise ConfigError(
            f"{path} is a report of schema {schema}, this version reads {SCHEMA}: run the suite again"
        )
    missing = [name for name in NEEDED if name not in found]
    if missing:
        raise ConfigError(f"{path} cannot be read as a conformance report: it has no {', '.join(missing)}")
    return found


def results(record: Record) -> list[CaseResult]:
    """The cases of a record."""
    return [CaseResult.from_dict(values) for values in record["cases"]]
