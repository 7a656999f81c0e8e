"""The matrix as Markdown: families and ops in rows, backends in columns, one table per suite and tier."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dsv4core import backends
from dsv4core_conformance.report.matrix import Column, Table, tables

BEGIN, END = "<!-- matrix -->", "<!-- /matrix -->"
NOTHING = "No report is published yet."


def matrix(columns: Sequence[Column]) -> str:
    """Every table in full."""
    return "\n\n".join(_full(table) for table in tables(columns)) or NOTHING


def readme(columns: Sequence[Column], folder: Path) -> str:
    """What a README shows: one line per report with a link relative to `folder`, the tables folded away.

    Backends that come with those of the reports and have no report of their own device get a line saying so.
    """
    if not columns:
        return NOTHING
    found = tables(columns)
    lines = ["| backend | tier | device | suite | level | result | cases |", "|---|---|---|---|---|---|---|"]
    for table in found:
        for column in table.columns:
            record = column.record
            link = Path(os.path.relpath(column.path, folder)).as_posix()
            lines.append(
                f"| `{record['backend']['name']}` {record['backend']['version']} | {table.tier} | "
                f"{record['device']['name']} | {table.suite}, list {table.case_list} | {record['level']} | "
                f"[{_verdict(column)}]({link}) | {totals(column)} |"
            )
    lines += [f"| `{name}` | device | | | | not run: no report | |" for name in _silent(columns)]
    folded = "\n\n".join(_full(table) for table in found)
    return "\n".join(
        [*lines, "", "<details><summary>By family and op</summary>", "", folded, "", "</details>"]
    )


def _silent(columns: Sequence[Column]) -> list[str]:
    shown = {column.record["backend"]["name"] for column in columns if column.record["tier"] == "device"}
    origins = {column.record["backend"]["distribution"] for column in columns}
    return sorted(row.name for row in backends() if row.distribution in origins and row.name not in shown)


def replace(text: str, block: str) -> str:
    """A document with the part between the two markers replaced; the same document where it has none."""
    start, stop = text.find(BEGIN), text.find(END)
    if start < 0 or stop < start:
        return text
    return f"{text[: start + len(BEGIN)]}\n{block}\n{text[stop:]}"


def totals(column: Column) -> str:
    """Counts by outcome, without those that are none."""
    return ", ".join(f"{number} {word}" for word, number in column.record["totals"].items() if number)


def _full(table: Table) -> str:
    head = [
        f"`{column.record['backend']['name']}` on {column.record['device']['name']}"
        for column in table.columns
    ]
    lines = [
        f"**Suite {table.suite}, case list {table.case_list}, tier {table.tier}**",
        "",
        f"| | {' | '.join(head)} |",
        f"|---|{'---|' * len(head)}",
        f"| level | {' | '.join(column.record['level'] for column in table.columns)} |",
        f"| result | {' | '.join(_verdict(column) for column in table.columns)} |",
    ]
    lines += [f"| {kind} `{name}` | {' | '.join(cells)} |" for kind, name, cells in table.rows()]
    return "\n".join(lines)


def _verdict(column: Column) -> str:
    tick = "✓ " if column.ticks and column.record["verdict"] == "pass" else ""
    part = "" if column.record["complete"] else " (a part)"
    return f"{tick}{column.record['verdict']}{part}"
