"""Memory that the context of one request takes, against the published bytes per token.

Type `python benchmarks/memory.py [--csv FILE]` (Linux). Every context is a process of its own: it decodes a
token through a layer of every kind, then makes and fills caches of that context, decodes its last token, and
reports by how much the most memory it held (VmHWM) grew. What there is besides the rows: pages are rounded up
to their alignment, and two RoPE tables have 256 bytes a position, for all layers together.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import subprocess
import sys
from pathlib import Path

WARM = 1 << 12  # tokens of the step before; the tables have at least as many rows
CONTEXTS = (1 << 14, 1 << 16, 1 << 18, 1 << 20)
TABLE_BYTES = 2 * 256
PRESET = "tiny"  # the caches' rows are those of V4-Flash; weights and activations are small


def model_bytes() -> tuple[float, float]:
    """Bytes per token of the layers measured: of their rows, and with pages as they are allocated."""
    from dsv4core import AttentionConfig
    from dsv4core.cache import cache_specs

    config = AttentionConfig.preset(PRESET)
    rows = pages = 0.0
    for layer in layers():
        for spec in cache_specs(config, layer):
            if spec.sliding is None:
                rows += spec.record_bytes / spec.tokens_per_row
                pages += spec.page_bytes / spec.tokens_per_page
    return rows, pages


def layers() -> tuple[int, ...]:
    """The first layer of every kind."""
    from dsv4core import AttentionConfig

    config = AttentionConfig.preset(PRESET)
    return tuple({config.layer(i).kind: i for i in reversed(range(len(config.compress_ratios)))}.values())


def growth(context: int) -> int:
    """By how many bytes a process grew at most that decodes the last of `context` tokens."""
    command = [sys.executable, __file__, "--child", str(context)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def expected(context: int) -> float:
    """What it should be: pages and tables, less the tables of the step before."""
    return model_bytes()[1] * context + TABLE_BYTES * (context - WARM)


def child(context: int) -> None:
    """Decode twice and print what the second step and its caches took."""
    import torch
    from _pages import random_cache

    from dsv4core import AttentionConfig, AttentionWeights, get_backend

    torch.set_num_threads(1)
    config = AttentionConfig.preset(PRESET)
    weights = [AttentionWeights.random(config, layer, seed=0) for layer in layers()]
    attentions = [get_backend("cpu").attention(config, *pair) for pair in zip(layers(), weights, strict=True)]

    def step(tokens: int) -> None:
        cache, plan = random_cache(config, layers(), tokens)
        for attention in attentions:
            attention(torch.zeros(1, config.hidden_size, dtype=attention.dtype), cache, plan)

    step(WARM)
    ctypes.CDLL(None).malloc_trim(0)  # what is free goes back: the next step must not hide in it
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    step(context)
    print(memory("VmHWM") - before)


def memory(name: str) -> int:
    """Bytes that the kernel reports under a name."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def main() -> None:
    """Print and write one line per context."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    rows, pages = model_bytes()
    print(f"rows {rows} bytes per token, pages {pages:.2f}, RoPE tables {TABLE_BYTES} per position")
    lines: list[dict[str, float]] = []
    for context in CONTEXTS:
        grown, wanted = growth(context), expected(context)
        lines.append({"context": context, "grown": grown, "rows": rows * context, "expected": wanted})
        mib = " ".join(f"{n / 2**20:8.1f}" for n in (grown, rows * context, wanted))
        print(f"context {context:8}: MiB grown, rows, with rounding and tables {mib}", flush=True)
    if options.csv:
        with options.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, lines[0])
            writer.writeheader()
            writer.writerows(lines)


if __name__ == "__main__":
    main()
