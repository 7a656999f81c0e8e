"""What `compute_global_topk_indices_and_lens` must return: slots of listed entries, valid ones first."""

from __future__ import annotations

from typing import Any

import numpy as np


def expected(a: dict[str, Any], dtypes: dict[str, str]) -> list[Any]:
    """Slot = page * rows + row of an entry's page; entries without a page and padding rows give -1.

    Shapes: topk i32 [T, K], token_to_req i32 [T], block_table i32 [R, W], is_valid bool [T] -> slots i32
    [T, K], lens i32 [T]
    """
    topk, table, rows = a["topk"].astype(np.int64), a["block_table"].astype(np.int64), a["rows"]
    slots = np.full(topk.shape, -1, dtype=np.int32)
    lens = np.zeros(len(topk), dtype=np.int32)
    for t, listed in enumerate(topk):
        if not a["is_valid"][t] or not table.size:
            continue
        pages = table[int(a["token_to_req"][t])]
        inside = listed[(listed >= 0) & (listed < len(pages) * rows)]
        inside = inside[pages[inside // rows] >= 0]
        lens[t] = len(inside)
        slots[t, : len(inside)] = pages[inside // rows] * rows + inside % rows
    return [slots, lens]
