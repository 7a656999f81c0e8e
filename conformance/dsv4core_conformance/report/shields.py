"""Badges: one endpoint file of shields.io per report. Green is earned on the device itself only."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dsv4core_conformance.report.matrix import Column, tables

COLOURS = {"fail": "red", "partial": "yellow", "not run": "lightgrey"}
"""Of every verdict but `pass`; no tier and no level makes a failure look better."""


def badge(column: Column) -> dict[str, Any]:
    """The endpoint JSON of one report."""
    record = column.record
    tier = "" if record["tier"] == "device" else f" ({record['tier']})"
    part = "" if record["complete"] else ", a part"
    return {
        "schemaVersion": 1,
        "label": f"dsv4core {record['suite']['version']} {record['backend']['name']}{tier}",
        "message": f"{record['verdict']}, {record['level']}{part}",
        "color": colour(column),
    }


def colour(column: Column) -> str:
    """`brightgreen` for a whole core or extended level on the device; blue for any other pass."""
    record = column.record
    if record["verdict"] != "pass":
        return COLOURS[record["verdict"]]
    return "brightgreen" if column.ticks and record["level"] != "layout" else "blue"


def write(columns: Iterable[Column], folder: Path) -> list[Path]:
    """Write one file per report of the newest suite, named by backend, device and tier."""
    found = tables(columns)
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[Path, dict[str, Any]] = {}
    newest = found[0].suite, found[0].case_list
    for table in found:
        if (table.suite, table.case_list) == newest:
            for column in sorted(table.columns, key=lambda item: item.record["started"]):
                written[folder / f"{column.slug}.json"] = badge(column)
    for path, values in written.items():
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    return list(written)
