"""`dsv4core bench`: time ops on one or more backends, after checking what they compute."""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dsv4core import env
from dsv4core.backend import Backend
from dsv4core.bench.gate import check
from dsv4core.bench.timing import Times, alternate, machine
from dsv4core.config import AttentionConfig
from dsv4core.errors import ConfigError
from dsv4core.ops import OPS
from dsv4core.samples import Size, sample
from dsv4core.selection import get_backend

COLUMNS = ("op", "backend", "provider", "ok", "check", "median_us", "q1_us", "q3_us", "runs", "calls")


@dataclass(frozen=True)
class Row:
    """One op on one backend; times are None where it failed the check."""

    op: str
    backend: str
    provider: str
    ok: bool
    check: str
    median_us: float | None = None
    q1_us: float | None = None
    q3_us: float | None = None
    runs: int = 0
    calls: int = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the subcommand."""
    parser.add_argument("--op", default="all", metavar="NAME[,NAME]", help="ops to time (default: all)")
    parser.add_argument("--backend", metavar="NAME[,NAME]", help="backends to time (default: the one chosen)")
    parser.add_argument("--tokens", type=int, default=8, help="tokens of a call (default: 8)")
    parser.add_argument("--context", type=int, default=640, help="entries per request (default: 640)")
    parser.add_argument("--preset", default="v4-flash", help="model dimensions (default: v4-flash)")
    parser.add_argument("--runs", type=int, default=9, help="timed runs per op and backend (default: 9)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the rows and the machine here")


def run(args: argparse.Namespace) -> int:
    """Check, time and print; 0, or 1 when an op of a backend does not compute what the contract says."""
    for name in ("tokens", "context", "runs"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} {getattr(args, name)}: a whole number of at least 1 is needed")
    names = _op_names(args.op)
    size = Size(args.tokens, args.context, AttentionConfig.preset(args.preset))
    wanted = _words(args.backend) if args.backend else [None]
    backends = {backend.name: backend for backend in map(get_backend, wanted)}
    devices = {name: backend.device_type for name, backend in backends.items()}
    about = {
        "preset": args.preset, "tokens": args.tokens, "context": args.context, "machine": machine(devices),
    }  # fmt: skip
    if not args.json:
        print(_heading(about))
    rows: list[Row] = []
    for name in names:
        measured = _measure(name, backends, size, args.runs)
        rows += measured
        if not args.json:
            print("\n".join(map(_line, measured)), flush=True)
    wrong = [row for row in rows if not row.ok]
    if args.csv:
        _write_csv(args.csv, rows, about)
    if args.json:
        print(json.dumps({**about, "rows": [asdict(row) for row in rows], "ok": not wrong}, indent=1))
    elif wrong:
        print(f"FAILED: {', '.join(f'{row.op} on {row.backend}' for row in wrong)}")
    return 1 if wrong else 0


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(word for word in map(str.strip, text.split(",")) if word))


def _op_names(text: str) -> list[str]:
    names = list(OPS) if text == "all" else _words(text)
    for name in names:
        if name not in OPS:
            near = env.nearest(name, OPS)
            hint = f"; did you mean {near}?" if near else ""
            raise ConfigError(f"--op {name}: no op has this name{hint} The ops are: {', '.join(OPS)}")
    if not names:
        raise ConfigError(f"--op is empty; type all or some of: {', '.join(OPS)}")
    return names


def _measure(name: str, backends: Mapping[str, Backend], size: Size, runs: int) -> list[Row]:
    """Rows of one op: only what passes its check is timed."""
    verdicts = {b: check(OPS[name], getattr(backend.ops, name), size, backend.device_type)
                for b, backend in backends.items()}  # fmt: skip
    sound = {b: backends[b] for b, verdict in verdicts.items() if verdict.ok}
    calls = {b: partial(getattr(backend.ops, name), **sample(name, size, backend.device_type))
             for b, backend in sound.items()}  # fmt: skip
    times = alternate(calls, {b: backend.device_type for b, backend in sound.items()}, runs)
    return [
        Row(name, b, backends[b].ops.provenance[name], verdict.ok, verdict.text, **_figures(times.get(b)))
        for b, verdict in verdicts.items()
    ]


def _figures(times: Times | None) -> dict[str, Any]:
    if times is None:
        return {}
    us = {"median_us": times.median, "q1_us": times.low, "q3_us": times.high}
    return {
        **{key: round(1e6 * value, 2) for key, value in us.items()},
        "runs": times.runs,
        "calls": times.calls,
    }


def _heading(about: Mapping[str, Any]) -> str:
    m = about["machine"]
    devices = "; ".join(f"{name}: {device}" for name, device in m["devices"].items())
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    return "\n".join([
        f"{devices}; {m['threads']} threads; {m['system']}; Python {m['python']}, {versions}",
        f"{about['preset']} dimensions, {about['tokens']} tokens, {about['context']} entries per request;"
        " checked first, then runs take turns",
        f"{'op':38} {'backend':8} {'provider':10} {'median':>12} {'quartiles':>25}  check",
    ])  # fmt: skip


def _line(row: Row) -> str:
    head = f"{row.op:38} {row.backend:8} {row.provider:10}"
    if row.median_us is None:
        return f"{head} {'no time':>12} {'':25}  WRONG: {row.check}"
    return f"{head} {row.median_us:9.1f} us {row.q1_us:11.1f} .. {row.q3_us:7.1f} us  {row.check}"


def _write_csv(path: Path, rows: Sequence[Row], about: Mapping[str, Any]) -> None:
    """One line per row, with everything about the machine in the last column as JSON."""
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow((*COLUMNS, "about"))
            for row in rows:
                writer.writerow((*(getattr(row, column) for column in COLUMNS), json.dumps(about)))
    except OSError as error:
        raise ConfigError(f"--csv {path} cannot be written: {error}") from None
