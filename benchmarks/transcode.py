"""What `dsv4core.layout.transcode` loses and how fast it is: the tables of docs/layouts.md.

Type `OMP_NUM_THREADS=1 python benchmarks/transcode.py [--mib 64] [--threads 1 2] [--calls 15] [--no-torch]`.
Every time is the least of many calls by the clock; a plain copy and the native kernels take turns on each
number of threads, torch runs three times on the first of them.
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
    """Seconds of a call on so many threads."""
    torch.set_num_threads(threads)
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


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
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--calls", type=int, default=15)
    parser.add_argument("--no-torch", action="store_true", help="leave the torch bodies out")
    options = parser.parse_args()
    size, teams = options.mib << 20, list(options.threads)
    native = CpuBackend({"native": "require"}).native
    assert native is not None
    convert = converter(native)
    block = torch.ones(size, dtype=torch.uint8)
    other = torch.ones_like(block)
    copies: dict[int, list[float]] = {team: [] for team in teams}
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
            run = partial(transcode, pages, a, b, rows=ROWS, out=out)
            least = [float("inf")] * (1 + len(teams))
            for call in range(options.calls):
                native_pages.register("cpu", convert)
                for i, team in enumerate(teams, 1):
                    copies[team].append(timed(lambda: other.copy_(block), team))
                    least[i] = min(least[i], timed(run, team))
                if call < 3 and not options.no_torch:
                    native_pages.register("cpu", None)
                    least[0] = min(least[0], timed(run, teams[0]))
            native_pages.register("cpu", convert)
            moved = pages.shape[0] * ROWS * (a.record_bytes + b.record_bytes)
            lines.append(([*cells, loss(a, b, one, made)], moved, least))
    copied = [2 * size / min(copies[team]) for team in teams]
    rates = ", ".join(f"{rate / 1e9:.1f} on {team}" for rate, team in zip(copied, teams, strict=True))
    print(f"{native.level}; GB/s of a plain copy, read and written: {rates} threads; shares of that:\n")
    heads = [
        "from",
        "to",
        "kind",
        "values that change",
        "torch",
        *(f"native, {n} thr." for n in teams),
        "GB/s",
    ]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for cells, moved, least in lines:
        per_second = [moved / seconds for seconds in least]
        shares = [f"{r / c:.0%}" for r, c in zip(per_second, [copied[0], *copied], strict=bool(least))]
        shown = ["" if x == "0%" and options.no_torch else x for x in shares] or [""] * (1 + len(teams))
        speed = ", ".join(f"{r / 1e9:.1f}" for r in per_second[1:])
        print("| " + " | ".join([*cells, *shown, speed]) + " |")


if __name__ == "__main__":
    main()
