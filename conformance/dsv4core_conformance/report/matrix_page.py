"""The matrix as one HTML page, in the look of the page of a run."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from dsv4core_conformance.report import plot, style
from dsv4core_conformance.report.markdown import NOTHING, totals
from dsv4core_conformance.report.matrix import Column, Table, tables
from dsv4core_conformance.result import OUTCOMES


def render(columns: Sequence[Column]) -> str:
    """The page of many runs."""
    body = "\n".join(_table(table) for table in tables(columns)) or f"<p>{NOTHING}</p>"
    return style.page("dsv4core conformance", f"<h1>dsv4core conformance</h1>{body}")


def _table(table: Table) -> str:
    cards = "".join(_card(column) for column in table.columns)
    head = [
        "",
        *(
            f"{escape(column.record['backend']['name'])}<br>{escape(column.record['device']['name'])}"
            for column in table.columns
        ),
    ]
    rows = [
        [f"{kind} <code>{escape(name)}</code>", *map(_shown, cells)] for kind, name, cells in table.rows()
    ]
    title = f"Suite {table.suite}, case list {table.case_list}, tier {table.tier}"
    return f"<h2>{escape(title)}</h2>{cards}{style.table(head, rows)}"


def _card(column: Column) -> str:
    record = column.record
    word = record["verdict"]
    part = "" if record["complete"] else ", a part of the level"
    bar = plot.outcomes({name: record["totals"][name] for name in OUTCOMES})
    name = f"{record['backend']['name']} {record['backend']['version']}".strip()
    return (
        f"<p>{escape(name)} on {escape(record['device']['name'])}, level {record['level']}{part} "
        f'<span class="chip {word.replace(" ", "-")}">{word}</span></p>'
        f"<p class=quiet>{escape(totals(column))}; {escape(record['started'])}</p>{bar}"
    )


def _shown(cell: str) -> str:
    kind = "pass" if cell.startswith("✓") else "fail" if cell.startswith("✗") else "quiet"
    return f'<span class="{kind}">{escape(cell)}</span>'
