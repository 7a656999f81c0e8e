"""Matrix products of a group's 128 threads, as `wgmma` takes operands and lays results out."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from host_device import BASE, Fault
from host_launch import launched, of_group
from host_numbers import Int32

products_of: Counter[str] = Counter()
"""Products of 64 rows that groups have taken, by what they are of."""
THREADS = np.arange(128)
ROWS, COLUMNS = THREADS // 32 * 16 + THREADS % 32 // 4, THREADS % 4 * 2


def products(rows: Any, descriptor: Any, kind: str, before: Any = (), size: int = 64) -> Any:
    """What a group's 128 threads hold of 64 rows times `size` in shared memory, as `wgmma` lays them out."""
    block, steps = launched.device.now.block, len(rows) // 4

    def widened(x: np.ndarray) -> np.ndarray:
        return x.view(np.float16).astype(np.float64) if kind == "f16" else high(x).astype(np.float64)

    def high(x: np.ndarray) -> np.ndarray:
        return (x.astype(np.uint32) << 16).view(np.float32)

    def combine(brought: list[Any]) -> list[Any]:
        products_of[kind] += steps / 8
        held = np.array([[int(w) & 0xFFFFFFFF for w in r] for r, *_ in brought], np.uint32).view(np.uint16)
        a = np.zeros((64, 16 * steps))
        for i in range(8 * steps):
            step, word, half = i // 8, i // 2 % 4, i % 2
            column = 16 * step + COLUMNS + 8 * (word // 2) + half
            a[ROWS + 8 * (word % 2), column] = widened(held[:, i].copy())
        (d,) = {int(d) & (1 << 64) - 1 for _, d, _ in brought}
        at, blocks = ((d & 0x3FFF) << 4) - BASE, steps // 4
        if (at + BASE) % 1024 or d >> 14 != ((1 << 16) | (64 << 32) | (1 << 62)) >> 14:
            raise Fault(f"a descriptor {d:#x}")
        n, chunk = np.arange(size)[:, None], np.arange(8)[None]
        parts = block.bytes[at : at + size * 128 * blocks].reshape(blocks, size, 8, 16)
        b = np.concatenate([part[n, chunk ^ n % 8].reshape(size, 128) for part in parts], 1).copy()
        found = a @ widened(b.view(np.uint16)).T
        places = [(8 * (i // 2 % 2), 8 * (i // 4) + i % 2) for i in range(size // 2)]
        sums = [[found[ROWS[t] + row, COLUMNS[t] + column] for row, column in places] for t in THREADS]
        earlier = [x or [0.0] * len(places) for *_, x in brought]
        return [
            [np.float32(x + y) for x, y in zip(*pair, strict=True)]
            for pair in zip(sums, earlier, strict=True)
        ]

    return of_group("products", (rows, descriptor, before), combine)


def whole_products(rows: Any, descriptor: Any) -> Any:
    """As `products`, of signed bytes, in whole numbers."""
    block = launched.device.now.block

    def combine(brought: list[Any]) -> list[Any]:
        products_of["bytes"] += 1
        held = np.array([[int(w) & 0xFFFFFFFF for w in r] for r, _ in brought], np.uint32).view(np.int8)
        a = np.zeros((64, 128), np.int64)
        for i in range(64):
            step, word, byte = i // 16, i // 4 % 4, i % 4
            a[ROWS + 8 * (word % 2), 32 * step + 16 * (word // 2) + 2 * COLUMNS + byte] = held[:, i]
        (d,) = {int(d) & (1 << 64) - 1 for _, d in brought}
        at = ((d & 0x3FFF) << 4) - BASE
        if (at + BASE) % 1024 or d >> 14 != ((1 << 16) | (64 << 32) | (1 << 62)) >> 14:
            raise Fault(f"a descriptor {d:#x}")
        n, chunk = np.arange(64)[:, None], np.arange(8)[None]
        b = block.bytes[at : at + 8192].reshape(64, 8, 16)[n, chunk ^ n % 8].reshape(64, 128)
        found = a @ b.view(np.int8).astype(np.int64).T
        places = [(8 * (i // 2 % 2), 8 * (i // 4) + i % 2) for i in range(32)]
        return [[Int32(found[ROWS[t] + row, COLUMNS[t] + column]) for row, column in places] for t in THREADS]

    return of_group("whole products", (rows, descriptor), combine)
