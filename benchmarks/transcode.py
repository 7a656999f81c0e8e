"""What `dsv4core.layout.transcode` loses and how fast it is: the tables of docs/layouts.md.

Type `OMP_NUM_THREADS=1 python benchmarks/transcode.py [--mib 64]`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from dsv4core.errors import LayoutError
from dsv4core.layout import CacheLayout, conversion, layouts, transcode
from dsv4core.numerics.hadamard import hadamard128
from dsv4core.synthetic import hash_normal

ROWS = 64


def best(call: Callable[[], object], repeats: int = 5) -> float:
    """Processor seconds of the fastest of some calls."""
    times: list[float] = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


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
    size = parser.parse_args().mib << 20
    block = torch.zeros(size, dtype=torch.uint8)
    other = torch.zeros_like(block)
    copied = 2 * size / best(lambda: other.copy_(block)) / 1e9
    print(f"{torch.get_num_threads()} threads, copy {copied:.1f} GB/s read and written\n")
    print(
        "| from | to | kind | values that change | GB/s of pages read | read and written, share of a copy |"
    )
    print("|---|---|---|---|---|---|")
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
            try:
                made = transcode(one, a, b, rows=ROWS)
            except LayoutError:
                print(f"| `{a.id}` | `{b.id}` | {kind} | refused here | | |")
                continue
            out = transcode(pages, a, b, rows=ROWS)
            seconds = best(lambda a=a, b=b, pages=pages, out=out: transcode(pages, a, b, rows=ROWS, out=out))
            rate, total = pages.numel() / seconds / 1e9, (pages.numel() + out.numel()) / seconds / 1e9
            cells = [
                f"`{a.id}`",
                f"`{b.id}`",
                kind,
                loss(a, b, one, made),
                f"{rate:.2f}",
                f"{total / copied:.0%}",
            ]
            print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
