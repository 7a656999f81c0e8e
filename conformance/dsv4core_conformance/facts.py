"""What a mismatch says in JSON values, beside its text: which page and byte, or how far beyond a bound."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

PAGE_LIMIT = 1 << 16
"""Bytes of a page that travel with a failure; larger pages are described without their bytes."""
RANGE_LIMIT = 512
RATIO_LIMIT = 1e12


def byte_facts(
    pages: Tensor, got: np.ndarray, expected: np.ndarray, wrong: np.ndarray, layout: str, rows: int
) -> dict[str, Any]:
    """The first wrong byte of a storage as page and byte, and the bytes of that page as they were found.

    Shapes: got, expected u8 [bytes of the storage]; wrong i64 [wrong bytes], ascending
    """
    start = pages.storage_offset() * pages.element_size()
    stride = max(pages.stride(0), 1) * pages.element_size()
    size = pages[0].numel() * pages.element_size() if pages.shape[0] else 0
    page, inside = divmod(int(wrong[0]) - start, stride)
    if page < 0 or page >= pages.shape[0] or inside >= size:
        return {}
    first = start + page * stride
    here = wrong[(wrong >= first) & (wrong < first + size)] - first
    found: dict[str, Any] = {
        "layout": layout,
        "rows": rows,
        "page": page,
        "byte": inside,
        "expected": f"{expected[wrong[0]]:02x}",
        "got": f"{got[wrong[0]]:02x}",
        "differ": len(here),
        "page_bytes": size,
        "ranges": _ranges(here),
    }
    if size <= PAGE_LIMIT:
        found["page_hex"] = got[first : first + size].tobytes().hex()
    return found


def ratio_facts(ratio: float) -> dict[str, Any]:
    """The worst error in units of its bound; what is not finite counts as very large."""
    return {"ratio": float(min(ratio, RATIO_LIMIT))}


def _ranges(places: np.ndarray) -> list[list[int]]:
    """Runs of neighbouring bytes as [first, last], the first `RANGE_LIMIT` of them."""
    breaks = np.flatnonzero(np.diff(places) > 1)
    firsts = places[np.concatenate([[0], breaks + 1])]
    lasts = places[np.concatenate([breaks, [len(places) - 1]])]
    return [[int(a), int(b)] for a, b in zip(firsts, lasts, strict=True)][:RANGE_LIMIT]
