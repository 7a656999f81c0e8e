"""`dsv4core bench`: time ops on one or more backends, after checking what they compute."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dsv4core import env
from dsv4core.bench import case as cases
from dsv4core.bench import floors, page, peers, plot
from dsv4core.bench.case import Case
from dsv4core.bench.floors import Floors
from dsv4core.bench.measure import Row, measure
from dsv4core.bench.output import heading, refuse_unwritable, write_csv
from dsv4core.bench.side import BackendSide, Side, bodies
from dsv4core.bench.timing import CLOCKS, Timer, machine, timer
from dsv4core.config import AttentionConfig
from dsv4core.errors import ConfigError
from dsv4core.ops import OPS
from dsv4core.samples import Size
from dsv4core.selection import get_backend

THREADS_PER_CORE = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the subcommand."""
    parser.add_argument("--op", default="all", metavar="NAME[,NAME]", help="ops to time (default: all)")
    parser.add_argument("--backend", metavar="NAME[,NAME]", help="backends to time (default: the one chosen)")
    parser.add_argument("--bodies", action="store_true", help="time the portable bodies too")
    parser.add_argument(
        "--peers", default="", metavar="NAME=PATH[,...]", help=f"other libraries: {', '.join(peers.MODULES)}"
    )
    parser.add_argument(
        "--cases", type=Path, metavar="FILE", help="time the cases of this Python file, as in benchmarks/"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name holds this")
    parser.add_argument("--tokens", type=int, default=8, help="tokens of a call (default: 8)")
    parser.add_argument("--context", type=int, default=640, help="entries per request (default: 640)")
    parser.add_argument("--preset", default="v4-flash", help="model dimensions (default: v4-flash)")
    parser.add_argument("--runs", type=int, default=9, help="timed runs per case and side (default: 9)")
    parser.add_argument("--seconds", type=float, default=60.0, help="limit per case (default: 60)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: torch's own)")
    parser.add_argument(
        "--clock", choices=sorted(CLOCKS), default="wall",
        help="wall; cpu: the processor time of one thread, on a machine that does other work; launch: the "
        "host's time to start a call; graph: the device's time of calls in one graph (default: wall)",
    )  # fmt: skip
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the rows and the machine here")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw them (needs the extra `bench`)")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="a page with both (needs the extra `bench`)"
    )


def run(args: argparse.Namespace) -> int:
    """Check, time and print; 0, or 1 when a side does not compute what it should."""
    for name in ("tokens", "context", "runs", "threads"):
        given = getattr(args, name)
        if given is not None and given < 1:
            raise ConfigError(f"--{name} {given}: a whole number of at least 1 is needed")
        if given is not None and given > (most := _most(name)):
            raise ConfigError(f"--{name} {given}: a whole number of at most {most} is needed here")
    if not args.seconds > 0:
        raise ConfigError(f"--seconds {args.seconds:g}: a number greater than 0 is needed")
    for name in ("csv", "png", "html"):  # before anything is measured
        if getattr(args, name):
            refuse_unwritable(f"--{name}", getattr(args, name))
    chosen = [case for case in _cases(args) if args.only in case.name]
    if not chosen:
        raise ConfigError(f"--only {args.only!r}: no case has this in its name")
    if args.png or args.html:
        plot.library()  # before anything is measured
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads or before)
    try:
        return _run(args, chosen)
    finally:
        torch.set_num_threads(before)


def _most(name: str) -> int:
    """The largest number of an option: torch dies of many more threads than cores, lengths are int32."""
    return THREADS_PER_CORE * (os.cpu_count() or 1) if name == "threads" else 2**31 - 1


def _run(args: argparse.Namespace, chosen: Sequence[Case]) -> int:
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
    sides = _sides(args)
    kinds = list(dict.fromkeys(side.device for side in sides))
    timers: dict[str, Timer] = {kind: timer(args.clock, kind) for kind in kinds}
    # Floors take a second: only where a case says what it moves. Graphs copy slower than kernels do.
    rated = any(case.bytes or case.flops for case in chosen)
    clock = args.clock if args.clock == "cpu" else "wall"
    limits: dict[str, Floors] = (
        {kind: floors.measure(kind, timer(clock, kind)) for kind in kinds} if rated else {}
    )
    about = _about(args, sides, limits)
    if not args.json:
        print(_heading(about))
    rows: list[Row] = []
    for case in chosen:
        measured = measure(case, sides, timers, limits, args.runs, args.seconds)
        rows += measured
        if not args.json:
            print("\n".join(map(_line, measured)), flush=True)
    wrong = [row for row in rows if not row.ok]
    _write(args, rows, about)
    if args.json:
        print(json.dumps({**about, "rows": [asdict(row) for row in rows], "ok": not wrong}, indent=1))
    elif wrong:
        print(f"FAILED: {', '.join(f'{row.case} on {row.side}' for row in wrong)}")
    return 1 if wrong else 0


def _cases(args: argparse.Namespace) -> list[Case]:
    size = Size(args.tokens, args.context, AttentionConfig.preset(args.preset))
    names = _op_names(args.op)
    if args.cases is None:
        return cases.samples(names, size)
    found = cases.load(args.cases)
    return found if args.op == "all" else [case for case in found if case.op in names]


def _sides(args: argparse.Namespace) -> list[Side]:
    wanted = _words(args.backend) if args.backend else [None]
    backends = {backend.name: backend for backend in map(get_backend, wanted)}
    sides: list[Side] = [BackendSide(backend) for backend in backends.values()]
    if args.bodies:
        sides.append(BackendSide(bodies(sides[0].device)))
    return [*sides, *peers.load(args.peers)]


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(word for word in map(str.strip, text.split(",")) if word))


def _op_names(text: str) -> list[str]:
    names = list(OPS) if text == "all" else _words(text)
    for name in names:
        if name not in OPS:
            near = env.nearest(name, OPS)
            hint = f"; did you mean {near}?" if near else "."
            raise ConfigError(f"--op {name}: no op has this name{hint} The ops are: {', '.join(OPS)}")
    if not names:
        raise ConfigError(f"--op is empty; type all or some of: {', '.join(OPS)}")
    return names


def _about(args: argparse.Namespace, sides: Sequence[Side], limits: Mapping[str, Floors]) -> dict[str, Any]:
    return {
        "cases": args.cases.name if args.cases else "samples",
        "preset": args.preset, "tokens": args.tokens, "context": args.context, "clock": args.clock,
        "machine": machine({side.name: side.device for side in sides}),
        "floors": {
            kind: {"copy_gb_s": round(found.copy / 1e9, 1), "gemm_gflop_s": round(found.gemm / 1e9)}
            for kind, found in limits.items()
        },
        "command": shlex.join(["dsv4core", *sys.argv[1:]]),
    }  # fmt: skip


def _heading(about: Mapping[str, Any]) -> str:
    size = f"{about['preset']} dimensions, {about['tokens']} tokens, {about['context']} entries per request"
    rates = "".join(
        f"; {kind}: copy {rate['copy_gb_s']} GB/s, bf16 product {rate['gemm_gflop_s']} GFLOP/s"
        for kind, rate in about["floors"].items()
    )
    what = size if about["cases"] == "samples" else about["cases"]
    state = f"{about['clock']} clock, load {about['machine']['load']}{rates}"
    return "\n".join([
        heading(about["machine"]),
        f"{what}; checked first, then runs take turns; {state}",
        f"{'case':42} {'side':8} {'provider':9} {'median':>13} {'quartiles':>23} {'longer':>7} {'floor':>6}"
        "  check",
    ])  # fmt: skip


def _line(row: Row) -> str:
    head = f"{row.case:42} {row.side:8} {row.provider:9}"
    if row.median_us is None:
        return f"{head} {'no time':>13} {'':38}  WRONG: {row.check}"
    longer = "" if row.over is None else f"{row.over:.2f}x"
    roof = "" if row.roof is None else f"{row.roof:.0%}"
    times = f"{row.median_us:10.1f} us {row.q1_us:10.1f} .. {row.q3_us:9.1f}"
    return f"{head} {times} {longer:>7} {roof:>6}  {row.check}"


def _write(args: argparse.Namespace, rows: Sequence[Row], about: Mapping[str, Any]) -> None:
    if args.csv:
        write_csv(args.csv, rows, about)
    if not (args.png or args.html):
        return
    m = about["machine"]
    what = args.only or about["cases"].removesuffix(".py")
    title = f"{what}, {m['cpu']}, {m['threads']} thread{'s' if m['threads'] > 1 else ''}"
    picture = plot.png(rows, title)
    try:
        if args.png:
            args.png.write_bytes(picture)
        if args.html:
            args.html.write_text(page.html(rows, about, picture, title), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be written: {error.strerror}") from None
