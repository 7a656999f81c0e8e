"""What `sparse_decode` must come near: attention of every token over its listed rows of both caches."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv4core_conformance.reference.quant import F64
from dsv4core_conformance.reference.rows import read

from .attention import attend_lists


def _listed(slots: NDArray[np.int32], lens: NDArray[np.int32], count: int) -> list[NDArray[np.int64]]:
    """The slots of every token that are keys. Shapes: i32 [T, K], i32 [T] -> T of i64 [n]"""
    found = []
    for row, length in zip(slots, lens, strict=True):
        inside = row[: int(length)].astype(np.int64)
        found.append(inside[(inside >= 0) & (inside < count)])
    return found


def _keys(pages: NDArray[np.uint8], slots: list[NDArray[np.int64]], layout: str, rows: int) -> list[F64]:
    """Values of the listed rows, each row decoded once. Shapes: -> T of f64 [n, 512]"""
    every = np.unique(np.concatenate([*slots, np.zeros(0, dtype=np.int64)]))
    values = read(layout, pages, every, rows)
    return [values[np.searchsorted(every, listed)] for listed in slots]


def expected(a: dict[str, Any], dtypes: dict[str, str]) -> list[Any]:
    """Negative slots, those behind the last page and everything behind a length are no keys.

    Shapes: q f32 [T, H, 512], slots i32 [T, K] and lens i32 [T] twice -> f64 [T, H, 512], [T, H], [T, H]
    """
    pages = a["swa_cache"]
    listed = _listed(a["swa_slots"], a["swa_lens"], len(pages) * a["swa_rows"])
    keys = _keys(pages, listed, a["layout"], a["swa_rows"])
    if a["extra_cache"] is not None:
        pages = a["extra_cache"]
        listed = _listed(a["extra_slots"], a["extra_lens"], len(pages) * a["extra_rows"])
        more = _keys(pages, listed, a["extra_layout"], a["extra_rows"])
        keys = [np.concatenate(pair) for pair in zip(keys, more, strict=True)]
    return list(attend_lists(a["q"].astype(np.float64), keys, a["attn_sink"].astype(np.float64), a["scale"]))
