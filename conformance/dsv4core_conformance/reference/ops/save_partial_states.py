"""`save_partial_states`: a token's compressor projections into its state row."""

from __future__ import annotations

from typing import Any

import numpy as np


def expected(a: dict[str, Any], dtypes: dict[str, str]) -> list[Any]:
    """No result; the state row of every slot that is not negative is written."""
    state, width = a["state_cache"], a["kv"].shape[1]
    for t, slot in enumerate(a["slot_mapping"]):
        if slot < 0:
            continue
        row = state[slot // state.shape[1], slot % state.shape[1]]
        row[:width] = a["kv"][t]
        row[width:] = np.add(a["score"][t], a["ape"][a["positions"][t] % a["ratio"]], dtype=np.float32)
    return []
