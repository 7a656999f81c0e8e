"""What `combine_topk_swa_indices` must return: one list of workspace rows per prefill query."""

from __future__ import annotations

from typing import Any

import numpy as np

MULTIPLE = 128


def expected(a: dict[str, Any], dtypes: dict[str, str]) -> list[Any]:
    """Entries first, then the window, as rows of the workspace in which request b owns rows b*M on.

    The query at position p lists the first min((p + 1) // ratio, top_k) of its entries, then the positions
    from p - window + 1 (not below 0) to p; a position's row is N plus its distance from the first gathered
    one. A row that no request has is -1 throughout.

    Shapes: topk i32 [T, K], query_start_loc i32 [R + 1], seq_lens and gather_lens i32 [R] -> indices i32
    [T, roundup(top_k + window, 128)], lens i32 [T]
    """
    window, ratio, top_k, stride = a["window"], a["ratio"], a["top_k"], a["M"]
    tokens = len(a["topk"])
    out = np.full((tokens, -(-(top_k + window) // MULTIPLE) * MULTIPLE), -1, dtype=np.int32)
    lens = np.zeros(tokens, dtype=np.int32)
    starts = a["query_start_loc"].astype(np.int64)
    for b in range(len(a["seq_lens"])):
        seq, count = int(a["seq_lens"][b]), int(starts[b + 1] - starts[b])
        gathered_from = seq - int(a["gather_lens"][b])
        for i in range(count):
            t, p = int(starts[b] - starts[0]) + i, seq - count + i
            entries = min((p + 1) // ratio, top_k) if top_k else 0
            first = max(p - window + 1, 0)
            listed = a["topk"][t, :entries].astype(np.int64)
            lens[t] = entries + p + 1 - first
            out[t, :entries] = np.where(listed >= 0, listed + b * stride, -1)
            out[t, entries : lens[t]] = b * stride + a["N"] + np.arange(first, p + 1) - gathered_from
    return [out, lens]
