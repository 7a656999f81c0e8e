"""`dsv4core matrix`: merge conformance reports into a support matrix, a page, badges, or a README's table."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsv4core_conformance.report.matrix import Column

REPORTS = Path("conformance") / "reports"
"""Where reports are kept beside a README, in a folder per version of the suite."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the reports and what to make of them."""
    parser.add_argument(
        "reports", nargs="*", type=Path, metavar="REPORT", help="report files, or folders of them"
    )
    parser.add_argument("--markdown", action="store_true", help="print the matrix as Markdown (the default)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the matrix as one HTML page")
    parser.add_argument(
        "--shields", type=Path, metavar="DIR", help="write one shields.io endpoint per report"
    )
    parser.add_argument(
        "--readme",
        type=Path,
        metavar="FILE",
        help=f"renew the table of a README (reports: {REPORTS} beside it)",
    )
    parser.add_argument(
        "--check", action="store_true", help="with --readme: change nothing, 1 if it is outdated"
    )


def run(args: argparse.Namespace) -> int:
    """Make what was asked for; 0, or 1 where --check finds the README outdated, or 2 without a report."""
    from dsv4core_conformance.report import markdown, matrix, shields

    paths: list[Path] = args.reports
    if args.readme is not None and not paths:
        kept = args.readme.parent / REPORTS
        paths = [kept] if kept.is_dir() else []
    columns = matrix.read(paths)
    if args.readme is not None:
        return _readme(args.readme, columns, check=args.check)
    if not columns:
        print("dsv4core matrix: no report; `dsv4core conformance --report FILE` writes one", file=sys.stderr)
        return 2
    if args.html is not None:
        from dsv4core_conformance.report import matrix_page

        args.html.write_text(matrix_page.render(columns), encoding="utf-8")
    if args.shields is not None:
        shields.write(columns, args.shields)
    if args.json:
        print(json.dumps(_plain(columns), indent=2))
    elif args.markdown or (args.html is None and args.shields is None):
        print(markdown.matrix(columns))
    return 0


def _readme(file: Path, columns: list[Column], *, check: bool) -> int:
    from dsv4core_conformance.report import markdown

    before = file.read_text(encoding="utf-8")
    if markdown.BEGIN not in before:
        print(f"dsv4core matrix: {file} has no line {markdown.BEGIN} to write after", file=sys.stderr)
        return 2
    after = markdown.replace(before, markdown.readme(columns, file.parent))
    if check:
        if after != before:
            print(f"{file} is outdated: dsv4core matrix --readme {file}", file=sys.stderr)
        return int(after != before)
    file.write_text(after, encoding="utf-8")
    return 0


def _plain(columns: list[Column]) -> list[dict[str, Any]]:
    from dsv4core_conformance.report import matrix

    return [
        {
            "suite": table.suite,
            "case_list": table.case_list,
            "tier": table.tier,
            "reports": [
                {"file": str(column.path), "verdict": column.record["verdict"], "key": list(column.key)}
                for column in table.columns
            ],
            "rows": [{"kind": kind, "name": name, "cells": cells} for kind, name, cells in table.rows()],
        }
        for table in matrix.tables(columns)
    ]
