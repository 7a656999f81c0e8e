"""Arguments of `combine_topk_swa_indices`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dsv4core_conformance.inputs.draws import LARGE, i32, punch
from dsv4core_conformance.inputs.hashed import Draws


def make(
    *, queries: Sequence[int] = (1, 5, 3, 0, 20), prefixes: Sequence[int] = (0, 0, 200, 7, 511),
    window: int = 128,
    ratio: int = 4, top_k: int = 9, first: int = 11, spare: int = 4, room: int = 30, holes: str | float = 0.0,
    seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """One request per number of `queries` behind `prefixes` tokens; `first` is where query_start_loc begins.

    `spare`: columns of the list behind top_k; `room`: workspace rows that nobody lists. Entries that a query
    may not see are large numbers.
    """
    rng = Draws(seed, "combine")
    q, prefix = np.array(queries, dtype=np.int64), np.array(prefixes, dtype=np.int64)
    seq, gathered = q + prefix, q + np.minimum(prefix, window - 1)
    entries = max(int(seq.max(initial=0)) // ratio, 1) if ratio else 1
    topk = rng.integers(0, entries, (int(q.sum()), top_k + spare))
    punch(topk, holes, rng)
    if top_k:
        row = 0
        for count, total in zip(q, seq, strict=True):
            for p in range(int(total - count), int(total)):
                topk[row, min((p + 1) // ratio, top_k) :] = LARGE
                row += 1
    longest = min(top_k, int(seq.max(initial=0)) // ratio) if ratio else 0
    topk[:, :longest] = np.where(
        topk[:, :longest] == LARGE, -1, topk[:, :longest]
    )  # checked mode reads these
    start = first + np.concatenate([[0], np.cumsum(q)])
    return {
        "topk": i32(topk), "query_start_loc": i32(start), "seq_lens": i32(seq), "gather_lens": i32(gathered),
        "window": window, "ratio": ratio, "top_k": top_k, "M": entries + int(gathered.max(initial=0)) + room,
        "N": entries,
    }  # fmt: skip
