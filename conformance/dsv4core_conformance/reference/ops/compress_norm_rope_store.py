"""`compress_norm_rope_store`: windows of states that close become entries in pages."""

from __future__ import annotations

from typing import Any

import numpy as np

from dsv4core_conformance.reference import rows
from dsv4core_conformance.reference.ca1 import bf16, hadamard, pool, rms_norm, rope


def expected(a: dict[str, Any], dtypes: dict[str, str]) -> list[Any]:
    """No result; one entry per token that closes a window and has both slots is written."""
    ratio, head, state = a["ratio"], a["head_dim"], a["state_cache"]
    live = a["slot_mapping"]
    position, target = a["positions"][: len(live)], a["kv_slot_mapping"][: len(live)]
    tokens = np.flatnonzero((live >= 0) & (target >= 0) & (position % ratio == ratio - 1))
    if not len(tokens):
        return []
    last = position[tokens]
    halves = 2 if ratio == 4 else 1
    index = last[:, None] + np.arange(1 - halves * ratio, 1)
    slots = rows.table_slots(a["block_table"], a["token_to_req"][tokens][:, None], index, state.shape[1])
    valid = index >= 0
    safe = np.where(valid, slots, 0)
    window = state[safe // state.shape[1], safe % state.shape[1]]
    kv, score = np.split(window, 2, axis=-1)
    entry = pool(_halves(kv, ratio, head), _halves(score, ratio, head), valid)
    entry = rms_norm(entry, a["norm_weight"], a["eps"])
    entry = rope(entry, a["cos_sin"][last // ratio * ratio])
    if a["layout"] not in rows.PLAIN:
        entry = bf16(entry)
    if a["rotate"] == "hadamard":
        entry = hadamard(entry)
    rows.write(a["layout"], a["k_cache"], target[tokens], a["rows"], entry)
    return []


def _halves(window: np.ndarray, ratio: int, head: int) -> np.ndarray:
    """Columns of a window's rows: the older `ratio` rows read the first `head`, the newer ones the last.

    Shapes: [n, w, W] -> [n, w, head]
    """
    if window.shape[1] == ratio:
        return window
    return np.concatenate((window[:, :ratio, :head], window[:, ratio:, head:]), axis=1)
