"""`dsv4core conformance`: run the suite against a backend without remembering pytest's words."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dsv4core.cli import UNAVAILABLE
from dsv4core.probe import module_exists

NEEDED = ("pytest", "pytest_timeout", "numpy", "dsv4core_conformance")
"""Modules of the extra `conformance`, and the suite itself."""

PLUGIN = "dsv4core_conformance.plugin"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the suite's options; what follows `--` goes to pytest as it is."""
    parser.add_argument("--backend", metavar="NAME", help="backend to judge (default: DSV4CORE_BACKEND)")
    parser.add_argument(
        "--level", choices=("layout", "core", "extended"), help="how much to run (default: core)"
    )
    parser.add_argument(
        "--device", metavar="DEVICE", help="torch device to run on (default: the backend's own)"
    )
    parser.add_argument(
        "--case", metavar="GLOB", action="append", default=[], help="run only cases of this name"
    )
    parser.add_argument("--strict", action="store_true", help="exit 1 when deviations are declared")
    parser.add_argument("--report", metavar="FILE", help="write the report as JSON")
    parser.add_argument("--html", metavar="FILE", help="write the report as one HTML page")
    parser.add_argument(
        "pytest", nargs="*", metavar="-- WORDS", help="more words for pytest, for example -- -n 4 -x"
    )


def run(args: argparse.Namespace) -> int:
    """Run pytest in a process of its own; its exit code: 0 pass, 1 fail, 4 nothing could be judged."""
    missing = [name for name in NEEDED if not module_exists(name)]
    if missing:
        print(
            f"dsv4core conformance: not installed: {', '.join(missing)}; "
            'python -m pip install "dsv4core[conformance]"',
            file=sys.stderr,
        )
        return UNAVAILABLE
    if not args.json:
        return subprocess.run(command(args, args.report)).returncode
    with tempfile.TemporaryDirectory() as folder:
        file = Path(args.report or Path(folder) / "report.json")
        code = subprocess.run(command(args, str(file)), stdout=sys.stderr.fileno()).returncode
        print(file.read_text(encoding="utf-8") if file.exists() else "{}")
        return code


def command(args: argparse.Namespace, report: str | None) -> Sequence[str]:
    """The command that runs the suite with this interpreter."""
    words = [sys.executable, "-m", "pytest", "-p", PLUGIN, "--pyargs", "dsv4core_conformance"]
    given = (
        ("--backend", args.backend),
        ("--level", args.level),
        ("--device", args.device),
        *(("--case", glob) for glob in args.case),
        ("--dsv4core-report", report),
        ("--dsv4core-html", args.html),
    )
    for name, value in given:
        if value is not None:
            words += [name, value]
    return [*words, *(["--strict"] if args.strict else []), *args.pytest]
