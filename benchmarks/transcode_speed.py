"""How fast `dsv4core.layout.transcode` is, in bytes read and written per second, beside a plain copy.

Type `OMP_NUM_THREADS=1 python benchmarks/transcode_speed.py [--mib 128]`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from dsv4core.errors import LayoutError
from dsv4core.layout import conversion, get_layout, layouts, transcode
from dsv4core.synthetic import hash_normal

ROWS = 64


def best(call: Callable[[], object], repeats: int = 3) -> float:
    """Seconds of the fastest of some calls."""
    times: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Print one line per pair that converts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=128, help="size of the source pages")
    size = parser.parse_args().mib << 20
    block = torch.zeros(size, dtype=torch.uint8)
    other = torch.zeros_like(block)
    copied = 2 * size / best(lambda: other.copy_(block)) / 1e9
    print(f"threads {torch.get_num_threads()}, copy {copied:.1f} GB/s read + written\n")
    print("| from | to | kind | source GB/s | read + written GB/s | of copy |")
    print("|---|---|---|---|---|---|")
    for a in layouts():
        if a.width is None:
            continue
        one = a.encode_pages(hash_normal((8, ROWS, a.width), 0, a.id, 1.0).bfloat16())
        pages = one.repeat(-(-size // one.numel()), 1)
        for b in layouts():
            try:
                kind = conversion(a, b)
                transcode(one, a, b, rows=ROWS)
            except LayoutError:
                continue
            out = transcode(pages, a, b, rows=ROWS)
            seconds = best(lambda a=a, b=b, pages=pages, out=out: transcode(pages, a, b, rows=ROWS, out=out))
            moved = pages.shape[0] * (a.page_bytes(ROWS) + get_layout(b.id).page_bytes(ROWS))
            rate, total = pages.numel() / seconds / 1e9, moved / seconds / 1e9
            print(f"| `{a.id}` | `{b.id}` | {kind} | {rate:.2f} | {total:.2f} | {total / copied:.0%} |")


if __name__ == "__main__":
    main()
