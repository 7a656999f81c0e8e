"""What `dsv4core.layout.transcode` loses and how fast it is: the tables of docs/layouts.md.

Type `OMP_NUM_THREADS=1 python benchmarks/transcode.py [--mib 64] [--threads 1] [--calls 15]`. Every time
is the least of many calls; torch, the native kernels and a plain copy take turns on one machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch

from dsv4core.errors import LayoutError
from dsv4core.layout import CacheLayout, conversion, layouts, native_pages, transcode
from dsv4core.numerics.hadamard import hadamard128
from dsv4core.synthetic import hash_normal
from dsv4core_cpu.backend import CpuBackend
from dsv4core_cpu.transcode import converter

ROWS = 64


def timed(call: Callable[[], object], threads: int) -> float:
    """Seconds of a call: of the processor where there is one thread, else of the clock."""
    clock = time.process_time if threads == 1 else time.perf_counter
    start = clock()
    call()
    return clock() - start


def loss(a: CacheLayout, b: CacheLayout, pages: torch.Tensor, made: torch.Tensor) -> str:
    """Values that changed, and by how much in relative L2."""
    x, y = a.decode_pages(pages, ROWS).double(), b.decode_pages(made, ROWS).double()
    if a.rotate != b.rotate:
        x = hadamard128(x.to(torch.bfloat16)).double()
    changed = int((x != y).sum())
    return (
        f"{changed} of {x.numel()}"
        if changed == 0
        else f"{changed / x.numel():.0%}, {float((x - y).norm() / x.norm()):.1e}"
    )


def main() -> None:
    """Print one line per pair."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=64, help="size of the source pages")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--calls", type=int, default=15)
    options = parser.parse_args()
    size, threads = options.mib << 20, options.threads
    torch.set_num_threads(threads)
    native = CpuBackend({"native": "require"}).native
    assert native is not None
    ways = {"torch": None, f"native ({native.level})": converter(native)}
    block = torch.ones(size, dtype=torch.uint8)
    other = torch.ones_like(block)
    copies: list[float] = []
    lines: list[tuple[list[str], int, list[float]]] = []
    for a in layouts():
        if a.width is None:
            continue
        one = a.encode_pages(hash_normal((8, ROWS, a.width), 0, a.id, 1.0).bfloat16())
        pages = one.repeat(-(-size // one.numel()), 1)
        for b in layouts():
            try:
                kind = conversion(a, b)
            except LayoutError:
                continue
            cells = [f"`{a.id}`", f"`{b.id}`", kind]
            try:
                made = transcode(one, a, b, rows=ROWS)
            except LayoutError:
                lines.append(([*cells, "refused here"], 0, []))
                continue
            out = transcode(pages, a, b, rows=ROWS)
            least = [float("inf")] * len(ways)
            for call in range(options.calls):
                copies.append(timed(lambda: other.copy_(block), threads))
                for i, convert in enumerate(ways.values()):
                    if convert is None and call > 2:
                        continue  # slow, and steady
                    native_pages.register("cpu", convert)
                    run = partial(transcode, pages, a, b, rows=ROWS, out=out)
                    least[i] = min(least[i], timed(run, threads))
            moved = pages.shape[0] * ROWS * (a.record_bytes + b.record_bytes)
            lines.append(([*cells, loss(a, b, one, made)], moved, least))
    copied = 2 * size / min(copies)
    print(f"{threads} threads, copy {copied / 1e9:.1f} GB/s read and written; shares of that:\n")
    print("| from | to | kind | values that change | " + " | ".join(ways) + " | GB/s read and written |")
    print("|---" * (5 + len(ways)) + "|")
    for cells, moved, least in lines:
        rates = [moved / seconds for seconds in least]
        shares = [f"{rate / copied:.0%}" for rate in rates] or [""] * len(ways)
        print("| " + " | ".join([*cells, *shares, f"{rates[-1] / 1e9:.1f}" if rates else ""]) + " |")


if __name__ == "__main__":
    main()
