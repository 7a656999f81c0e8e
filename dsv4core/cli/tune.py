"""`dsv4core tune`: measure launch arguments of the Triton kernels on the device that is here."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dsv4core.bench.timing import alternate, timer
from dsv4core.errors import BackendUnavailableError, ConfigError
from dsv4core.probe import installed_version, module_exists
from dsv4core.runtime import accelerator, device_name, graph_support

ROUNDS = 9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the subcommand."""
    parser.add_argument("--kernel", action="append", default=[], help="tune rows of this kernel only")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of a call at most (default: 4096)")
    parser.add_argument("--context", type=int, default=640, help="entries per request (default: 640)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="try nothing new after so long")
    parser.add_argument("--write", action="store_true", help="write what was found into the package's table")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write it into this folder instead")


def run(args: argparse.Namespace) -> int:
    """Measure, print row after row, and write the table where that was asked."""
    if args.tokens < 1 or args.context < 1:
        raise ConfigError("--tokens and --context: whole numbers of at least 1 are needed")
    if args.out is not None and not args.out.is_dir():  # before anything is measured
        raise ConfigError(f"--out {args.out}: there is no such folder; make it first")
    if not args.seconds > 0:
        raise ConfigError(f"--seconds {args.seconds:g}: a number greater than 0 is needed")
    device = _device()
    from dsv4core.kernels.triton import _tuning, calls, tune
    from dsv4core.kernels.triton._devices import FOLDER, devices

    name = _tuning.device_class(torch.empty(0, device=device))
    known = sorted({kernel for family in devices().values() for kernel in family.kernels})
    unknown = [kernel for kernel in args.kernel if kernel not in known]
    if unknown:
        raise ConfigError(f"--kernel {unknown[0]}: the table has {', '.join(known)}")
    made = calls.calls(args.tokens, context=args.context) | calls.products(args.tokens, 4096)
    if args.kernel:  # large arguments take long to make
        small = calls.calls() | calls.products()
        made = {n: call for n, call in made.items() if tune.reached(small[n], name) & set(args.kernel)}
    folder = args.out or (FOLDER if args.write else None)
    outcomes: list[Any] = []
    cold = 0 if device == "cpu" else tune.COLD
    for outcome in tune.tune(made, device, tuple(args.kernel), _compare(device), cold, args.seconds):
        outcomes.append(outcome)
        if not args.json:
            print(_line(outcome), flush=True)
    versions = [f"{what} {installed_version(what)}" for what in ("torch", "triton", "triton-xpu")]
    measured = ", ".join([device_name(device), *(v for v in versions if not v.endswith("None"))])
    content = tune.tuned_file(name, outcomes, measured)
    if folder is not None:
        (folder / f"{name}.json").write_text(content)
    if args.json:
        rows = [asdict(outcome) for outcome in outcomes]
        print(json.dumps({"family": name, "measured": measured, "rows": rows}, indent=1))
        return 0
    asked = set(args.kernel) or (set(known) if args.seconds < float("inf") else set())
    untried = sorted(asked - {outcome.place.kernel for outcome in outcomes})
    if untried:
        print(f"as they were, not reached: {', '.join(untried)}")
    if folder is not None:
        print(f"written: {folder / f'{name}.json'}")
    return 0


def _device() -> str:
    """Where kernels run in this process: host memory in an interpreted one, else the accelerator."""
    if not module_exists("triton"):
        raise BackendUnavailableError(
            "tune: module 'triton' is not installed, so there is no kernel to measure; the torch of a device"
            " brings it"
        )
    from dsv4core.kernels.triton._launch import interpreted

    if interpreted:
        return "cpu"
    found = accelerator()
    if found is None:
        raise BackendUnavailableError(
            "tune: torch sees no accelerator here; TRITON_INTERPRET=1 measures the interpreter"
        )
    return found.type


def _compare(device: str) -> Callable[[Mapping[str, Callable[[], Any]]], dict[str, float]]:
    """Median seconds of functions that take turns on a device: without the host's time where graphs are."""
    clock = "wall" if graph_support(device)[0] is None else "graph"

    def compare(functions: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
        for function in functions.values():
            function()  # compiles
        times = alternate(functions, dict.fromkeys(functions, timer(clock, device)), ROUNDS)
        return {name: found.spread.median for name, found in times.items()}

    return compare


def _line(outcome: Any) -> str:
    place = outcome.place
    changed = {k: f"{v} -> {outcome.after[k]}" for k, v in outcome.before.items() if v != outcome.after[k]}
    said = ", ".join(f"{k} {v}" for k, v in changed.items()) or "as it was"
    times = f"{outcome.seconds_before * 1e6:9.1f} {outcome.seconds_after * 1e6:9.1f} us"
    return f"{place.kernel:28} row {place.number} {times}  {said}"
