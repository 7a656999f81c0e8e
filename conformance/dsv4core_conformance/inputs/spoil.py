"""Poison in everything that an op has no business to read."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsv4core_conformance.hosts import storage_bytes
from dsv4core_conformance.reference.rows import places

PATTERNS = {"ff": (0xFF,), "7f": (0x7F,), "inf": (0x80, 0x7F), "inf32": (0x00, 0x00, 0x80, 0x7F)}
"""Bytes that read as NaN (e4m3, bf16, f32, UE8M0), as a huge number, or as infinity."""


def spoil_unread(pages: Tensor, slots: NDArray[np.integer], layout: str, rows: int, pattern: str) -> None:
    """Overwrite the storage behind pages, all but the rows at these slots; also their unused scale byte.

    Shapes: pages u8 [N, B], slots i64 [n]
    """
    page, front, tail = places(layout, np.unique(slots[slots >= 0].astype(np.int64)), rows)
    if layout.startswith("fp8_ds_mla"):
        tail = tail[:, :7]
    view = pages.numpy()
    kept = [view[page[:, None], part].copy() for part in (front, tail)]
    storage = storage_bytes(pages)
    storage.copy_(torch.from_numpy(np.resize(np.array(PATTERNS[pattern], dtype=np.uint8), storage.numel())))
    for part, values in zip((front, tail), kept, strict=True):
        view[page[:, None], part] = values


def read_slots(slots: Tensor, lens: Tensor) -> NDArray[np.int64]:
    """The slots before the lengths that name a row. Shapes: i32 [T, K], i32 [T] -> i64 [n]"""
    listed = slots.numpy().astype(np.int64)
    return listed[(np.arange(listed.shape[1]) < lens.numpy()[:, None]) & (listed >= 0)]
