"""`python -m dsv4core_conformance.mutants`: is every mutant caught by its case, and by little else?

Prints a table and exits 1 if a mutant survives, raises, is caught by another family only, or breaks more
than a fifth of the cases; exits 2 if a case fails without any fault.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from functools import partial
from multiprocessing.pool import Pool
from pathlib import Path

from dsv4core_conformance.mutants import permuted
from dsv4core_conformance.mutants.catalogue import MUTANTS
from dsv4core_conformance.mutants.engine import Mutant
from dsv4core_conformance.mutants.runner import (
    Baseline,
    Report,
    baseline,
    cases_at_core,
    examine,
    load_baseline,
    prepare,
    run_case,
    save_baseline,
    target_names,
)

CHUNK = 24  # cases that a process takes at a time


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    prepare()
    chosen = [mutant for name, mutant in MUTANTS.items() if fnmatchcase(name, options.only)]
    if not chosen:
        print(f"no mutant is called {options.only!r}; --list shows the names", file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(mutant.name for mutant in chosen))
        return 0
    with _pool(options.jobs) as pool:
        known = _known(pool, options.baseline)
        broken = [
            f"{name}: {base.detail}" for name, base in known.items() if base.outcome in ("caught", "raised")
        ]
        if broken:
            print("these cases fail without any fault:", *broken, sep="\n  ", file=sys.stderr)
            return 2
        wrong = _permuted(pool, known) if options.only == "*" else []
    with _pool(options.jobs, 1) as pool:
        reports = pool.map(partial(_examine, known=known, everything=options.full), chosen, chunksize=1)
    print(table(reports, known))
    for name, detail in wrong:
        print(f"the permuted backend is right, but {name} says: {detail}")
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(report) for report in reports], indent=1))
    return 1 if wrong or any(report.problems for report in reports) else 0


def table(reports: Sequence[Report], known: Mapping[str, Baseline]) -> str:
    """The reports as Markdown, and a line that sums them up."""
    lines = [
        "| mutant | rows | family | caught by | cases that pass |",
        "|---|---|---|---|---|",
    ]
    for report in reports:
        verdict = f"`{report.caught_by}`" if not report.problems else "**" + "; ".join(report.problems) + "**"
        bound = f">= {report.passing:.1%}"
        lines.append(
            f"| {report.name} | {', '.join(report.rows)} | {report.family.upper()} | {verdict} | {bound} |"
        )
    good = sum(not report.problems for report in reports)
    lines.append("")
    lines.append(f"{good} of {len(reports)} mutants caught as intended; {len(known)} cases.")
    return "\n".join(lines)


def _examine(mutant: Mutant, *, known: Mapping[str, Baseline], everything: bool) -> Report:
    return examine(mutant, known, everything=everything)


def _known(pool: Pool, kept: str | None) -> dict[str, Baseline]:
    found = load_baseline(Path(kept)) if kept else None
    if found is not None:
        return found
    names = list(cases_at_core())
    parts = pool.map(_baseline_of, [names[i : i + CHUNK] for i in range(0, len(names), CHUNK)], chunksize=1)
    merged = {name: base for part in parts for name, base in part.items()}
    known = {name: merged[name] for name in names}
    if kept:
        save_baseline(Path(kept), known)
    return known


def _baseline_of(names: Sequence[str]) -> dict[str, Baseline]:
    cases = cases_at_core()
    return baseline([cases[name] for name in names], target_names(MUTANTS.values()))


def _permuted(pool: Pool, known: Mapping[str, Baseline]) -> list[tuple[str, str]]:
    """Cases that reject the permuted backend, which is right."""
    names = [name for name, base in known.items() if base.outcome == "pass"]
    parts = pool.map(_permuted_of, [names[i : i + CHUNK] for i in range(0, len(names), CHUNK)], chunksize=1)
    return [found for part in parts for found in part]


def _permuted_of(names: Sequence[str]) -> list[tuple[str, str]]:
    prepare()
    cases, subject = cases_at_core(), permuted.permuted_subject()
    found = [(name, *run_case(subject, cases[name])) for name in names]
    return [(name, detail) for name, outcome, detail in found if outcome in ("caught", "raised")]


def _pool(jobs: int, tasks: int | None = None) -> Pool:
    """Processes with all cases loaded; with `tasks` 1 each ends after one, and what it remembers with it."""
    methods = multiprocessing.get_all_start_methods()
    load_everything()
    context = multiprocessing.get_context(
        "fork" if "fork" in methods and sys.platform == "linux" else "spawn"
    )
    return context.Pool(jobs, maxtasksperchild=tasks)


def load_everything() -> None:
    """Import all cases before processes are forked, so that none of them has to."""
    cases_at_core()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dsv4core_conformance.mutants", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--only", metavar="GLOB", default="*", help="mutants of this name")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--json", metavar="FILE", help="write the reports there")
    parser.add_argument("--baseline", metavar="FILE", help="keep times and traces of the cases there")
    parser.add_argument("--full", action="store_true", help="run every case that enters a mutant's code")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
