"""`compressed_slot_mapping`: the slot of the entry that a token completes."""

from __future__ import annotations

from typing import Any

import numpy as np


def expected(a: dict[str, Any], dtypes: dict[str, str]) -> list[Any]:
    """Slots, -1 where no window closes or the token itself has no slot. Shapes: -> i64 [T]."""
    ratio, rows, table = a["ratio"], a["rows"], a["block_table"]
    out = np.full(len(a["positions"]), -1, dtype=np.int64)
    for t, slot in enumerate(a["slot_mapping"]):
        position = int(a["positions"][t])
        if slot < 0 or position % ratio != ratio - 1:
            continue
        column, row = divmod(position // ratio, rows)
        page = int(table[a["token_to_req"][t], column]) if column < table.shape[1] and len(table) else -1
        if page >= 0:
            out[t] = page * rows + row
    return [out]
