"""Compile every Triton kernel for devices that are not here, and compare it with a written baseline.

    python benchmarks/triton_aot.py                      # all targets against benchmarks/triton_aot.json
    python benchmarks/triton_aot.py --target sm90 --case "sparse*"
    python benchmarks/triton_aot.py --write              # a new baseline

Every target is compiled in a process of its own, without the interpreter and with an empty cache. It fails
when a kernel does not compile, spills more than its budget in the baseline, takes more shared memory than the
target has, or computes a matrix product without the target's matrix instructions or with less than half of
those in the baseline.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from fnmatch import fnmatchcase
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
os.environ["DSV4CORE_CHECK"] = "0"

import torch  # noqa: E402
import triton  # noqa: E402

from dsv4core.kernels.triton import aot  # noqa: E402
from dsv4core.kernels.triton._devices import devices  # noqa: E402
from dsv4core.kernels.triton.calls import calls  # noqa: E402

BASELINE = HERE / "triton_aot.json"
SLACK = 64  # spilled bytes that a budget may be passed by: another release of Triton moves some
Found = dict[str, Any]


def products() -> dict[str, Callable[[], tuple[str, dict[str, Any]]]]:
    """Projections with stored weights, which are no ops: every format and width, and what goes with them."""
    rows, inputs = 256, 4096
    parts = {
        "fp8_block": (torch.float8_e4m3fn, 1, (2, inputs // 128), torch.uint8),
        "nvfp4": (torch.uint8, 2, (rows, inputs // 16), torch.float8_e4m3fn),
        "mxfp4": (torch.uint8, 2, (rows, inputs // 32), torch.uint8),
    }

    def weight(format: str) -> dict[str, Any]:
        codes, pack, scales, kind = parts[format]
        factor = torch.ones(1) if format == "nvfp4" else None
        stored = torch.zeros(rows, inputs // pack, dtype=torch.uint8).view(codes)
        scale = torch.zeros(scales, dtype=torch.uint8).view(kind)
        return {"weight": stored, "scales": scale, "global_scale": factor, "format": format}

    def product(format: str, tokens: int, fp8: bool = False) -> tuple[str, dict[str, Any]]:
        x = torch.zeros(tokens, 1, inputs, dtype=torch.float8_e4m3fn if fp8 else torch.bfloat16)
        x_scales = torch.ones(tokens, 1, inputs // 128) if fp8 else None
        given = {"x": x, "x_scales": x_scales, "out_dtype": torch.bfloat16}
        return "quantised_linear", {**given, **weight(format)}

    x = torch.zeros(64, inputs, dtype=torch.bfloat16)
    found: dict[str, Callable[[], tuple[str, dict[str, Any]]]] = {
        f"quantised_linear/{format}/{tokens}": partial(product, format, tokens)
        for format in parts
        for tokens in (1, 64)
    }
    found["quantised_linear/fp8_activations"] = partial(product, "fp8_block", 64, True)
    found |= {f"dequantise_weight/{f}": partial(lambda f: ("dequantise_weight", weight(f)), f) for f in parts}
    return {**found, "quantise_activation": lambda: ("quantise_activation", {"x": x})}


CASES = {**calls(), **products()}


def compiled(case: str, target: str) -> Iterator[Found]:
    """What the kernels of a case take on a target, each once; or why that is not known."""
    op, arguments = CASES[case]()
    function = getattr(import_module(f"dsv4core.kernels.triton.{op}"), op)
    seen: set[str] = set()
    try:
        for launch in aot.record(lambda: function(**arguments), target):
            if launch.name not in seen:
                seen.add(launch.name)
                yield {"case": case, "kernel": launch.name, **asdict(aot.compile_for(launch, target))}
    except Exception as error:  # whatever a compiler raises is the finding
        last = str(error).strip().splitlines()[-1:] or [""]
        yield {"case": case, "error": f"{type(error).__name__}: {last[0][-200:]}"}


def judge(target: str, found: Found, before: dict[str, int] | None) -> list[str]:
    """What is wrong with a compiled kernel; `before` is its entry in the baseline."""
    if "error" in found:
        return [f"does not compile: {found['error']}"]
    wrong: list[str] = []
    there = devices()[target].shared
    if found["shared"] > there:
        wrong.append(f"{found['shared']} bytes of shared memory, {target} has {there}")
    if found["dots"] and not found["matrix"]:
        wrong.append(f"{found['dots']} matrix products without a matrix instruction")
    if before is None:
        wrong.append("not in the baseline (--write)")
    elif found["spills"] > before["spills"] + SLACK:
        wrong.append(f"spills {found['spills']}, its budget is {before['spills']}")
    elif found["matrix"] < before["matrix"] / 2:
        wrong.append(f"{found['matrix']} matrix instructions, the baseline has {before['matrix']}")
    return wrong


def chosen_cases(case: str, leave: list[str]) -> list[str]:
    """The cases of a pattern, less those of other patterns."""
    return [c for c in CASES if fnmatchcase(c, case) and not any(fnmatchcase(c, p) for p in leave)]


def in_a_process(target: str, case: str, leave: list[str]) -> list[Found]:
    """All cases of a target, compiled in a process without the interpreter."""
    with tempfile.TemporaryDirectory(prefix="dsv4core-aot-") as folder:
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        environment |= {"TRITON_CACHE_DIR": folder, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--compile", target, "--case", case]
        command += [word for pattern in leave for word in ("--leave", pattern)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        found.append({"case": case, "error": f"the process ended with {done.returncode}: {last}"})
    return found


def report(target: str, results: list[Found], known: dict[str, dict[str, int]], write: bool) -> int:
    """Print a line a kernel, and in `known` what is to be written; the number of kernels in the wrong."""
    failures = 0
    for found in results:
        key = f"{found['case']} / {found.get('kernel')}"
        if write and "error" not in found:
            known[key] = {"spills": found["spills"], "matrix": found["matrix"]}
        wrong = judge(target, found, known.get(key))
        failures += bool(wrong)
        columns = " ".join(f"{found.get(k, ''):6}" for k in ("registers", "spills", "shared", "matrix"))
        said = "".join(f"  WRONG: {w}" for w in wrong)
        print(f"{target:7} {found['case']:44} {found.get('kernel', ''):36} {columns}{said}", flush=True)
    return failures


def main() -> int:
    """Compile, print, compare; 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", action="append", choices=aot.targets())
    parser.add_argument("--case", default="*", help="cases of this pattern only")
    parser.add_argument("--leave", action="append", default=[], help="but not those of this pattern")
    parser.add_argument("--write", action="store_true", help="what is found becomes the baseline")
    parser.add_argument("--baseline", type=Path, default=BASELINE)
    parser.add_argument("--compile", choices=aot.targets(), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.compile:
        for case in chosen_cases(chosen.case, chosen.leave):
            for found in compiled(case, chosen.compile):
                print(json.dumps(found), flush=True)
        return 0
    known = json.loads(chosen.baseline.read_text()) if chosen.baseline.exists() else {}
    began, failures, kernels = time.perf_counter(), 0, 0
    print(f"triton {triton.__version__}")
    print(f"{'target':7} {'case':44} {'kernel':36} {'regs':>6} {'spills':>6} {'shared':>6} {'matrix':>6}")
    names = chosen.target or aot.targets()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda n: in_a_process(n, chosen.case, chosen.leave), names)
        for name, results in zip(names, found, strict=True):
            failures += report(name, results, known.setdefault(name, {}), chosen.write)
            kernels += len(results)
    if chosen.write:
        chosen.baseline.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    print(f"{kernels} kernels on {len(names)} targets, {failures} wrong, {time.perf_counter() - began:.0f} s")
    return 1 if failures or not kernels else 0


if __name__ == "__main__":
    raise SystemExit(main())
