"""Compile every CuTeDSL kernel for devices that are not here: registers, stack and shared memory.

    python benchmarks/cutedsl_aot.py                     # all of SHARED against cutedsl_aot.json
    python benchmarks/cutedsl_aot.py --arch sm_90a --write

It fails when a kernel does not compile, takes more stack than the baseline has (none, but for the decode
kernel whose groups of warps share registers out: a few words of its decoders), takes more registers than its
budget there by more than 16, or more shared memory than a block may have.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "backends" / "cuda")]

from dsv4core.kernels.triton.aot import resources  # noqa: E402
from dsv4core.probe import installed_version  # noqa: E402
from dsv4core_cuda.cutedsl import few_tokens, sparse_decode, sparse_indexer  # noqa: E402
from dsv4core_cuda.cutedsl._build import Program, compile_for  # noqa: E402
from dsv4core_cuda.cutedsl._probe import PACKAGE  # noqa: E402
from dsv4core_cuda.cutedsl.install import CHECK, launchers  # noqa: E402

BASELINE = HERE / "cutedsl_aot.json"
SHARED = {"sm_90a": 227 << 10, "sm_100a": 227 << 10, "sm_103a": 227 << 10, "sm_120a": 99 << 10}
"""Bytes of shared memory that a block may have, by architecture."""
SLACK = 16
Found = dict[str, int]


def programs(arch: str) -> dict[str, Program]:
    """Every kernel in every form that an architecture has."""
    found = {"check": CHECK, "clear": sparse_indexer.clear()}
    for op, module in launchers().items():
        found |= {f"{op} {form}": program for form, program in module.programs(arch).items()}
    for name, module in (("sparse_decode", sparse_decode), ("few_tokens", few_tokens)):
        found |= {f"{name} {form}": program for form, program in module.programs(arch).items()}
    return found


def used(program: Program, arch: str) -> Found:
    """What a program takes on an architecture."""
    words = resources(compile_for(program, arch))
    shared = words.get("SHARED", 0) + program.shared
    return {"registers": words["REG"], "stack": words["STACK"] + words["LOCAL"], "shared": shared}


def judge(arch: str, found: Found, before: Found | None) -> list[str]:
    """What is wrong with a compiled kernel; `before` is its entry in the baseline."""
    wrong: list[str] = []
    if found["stack"] > (before or {}).get("stack", 0):
        wrong.append(f"{found['stack']} bytes of stack")
    if found["shared"] > SHARED[arch]:
        wrong.append(f"{found['shared']} bytes of shared memory, {arch} has {SHARED[arch]}")
    if before is None:
        wrong.append("not in the baseline (--write)")
    elif found["registers"] > before["registers"] + SLACK:
        wrong.append(f"{found['registers']} registers, the baseline has {before['registers']}")
    return wrong


def main() -> int:
    """Compile, print, compare; 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", action="append", choices=SHARED)
    parser.add_argument("--write", action="store_true", help="what is found becomes the baseline")
    chosen = parser.parse_args()
    known = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    began, failures, kernels = time.perf_counter(), 0, 0
    print(f"{PACKAGE} {installed_version(PACKAGE)}")
    for arch in chosen.arch or SHARED:
        baseline = known[arch] = {} if chosen.write else known.get(arch, {})
        for name, program in programs(arch).items():
            kernels += 1
            try:
                found = used(program, arch)
            except Exception as error:  # whatever a compiler raises is the finding
                failures += 1
                print(f"{arch:8} {name:60} WRONG: does not compile: {str(error).strip()[-300:]}", flush=True)
                continue
            if chosen.write:
                baseline[name] = found
            wrong = judge(arch, found, baseline.get(name))
            failures += bool(wrong)
            said = "".join(f"  WRONG: {w}" for w in wrong)
            columns = " ".join(f"{k} {v:6}" for k, v in found.items())
            print(f"{arch:8} {name:60} {columns}{said}", flush=True)
    if chosen.write:
        BASELINE.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    print(f"{kernels} kernels, {failures} wrong, {time.perf_counter() - began:.0f} s")
    return 1 if failures or not kernels else 0


if __name__ == "__main__":
    raise SystemExit(main())
