"""What `indexer_logits` must come near: scores of the visible entries, and how near."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv4core_conformance.reference.quant import F64
from dsv4core_conformance.reference.rows import E4M3, read

from .linear import e2m1_values, powers

BOUND = 1e-5  # of kscale * sum_h |w_h| sum_d |q_hd k_d|
CELLS = 1 << 22


def queries(a: dict[str, Any], dtypes: dict[str, str]) -> F64:
    """The index queries as numbers. Shapes: -> f64 [T, H, 128]"""
    if a["q_scales"] is not None:
        return e2m1_values(a["q"]) * np.repeat(powers(a["q_scales"]), 32, axis=-1)
    return a["q"].astype(np.float64) if dtypes["q"] == "f32" else E4M3[a["q"]]


def entry_slots(a: dict[str, Any], request: int, entries: NDArray[np.int64]) -> NDArray[np.int64]:
    """Cache slots of entries of a request. Shapes: i64 [n] -> i64 [n]"""
    return a["block_table"][request].astype(np.int64)[entries // a["rows"]] * a["rows"] + entries % a["rows"]


def scores(a: dict[str, Any], dtypes: dict[str, str], width: int) -> tuple[F64, F64]:
    """sum_h w_h relu(q_h . k_s) in float64, -inf behind a token's context, and the bound of every score.

    Shapes: -> f64 [T, width], f64 [T, width]
    """
    q, w = queries(a, dtypes), a["weights"].astype(np.float64)
    lens = np.minimum(a["context_lens"].astype(np.int64), width)
    exact, bound = np.full((len(q), width), -np.inf), np.zeros((len(q), width))
    for request in np.unique(a["token_to_req"][lens > 0]):
        tokens = np.flatnonzero((a["token_to_req"] == request) & (lens > 0))
        longest = int(lens[tokens].max())
        step = max(CELLS // (len(tokens) * q.shape[1]), 1)
        for start in range(0, longest, step):
            span = np.arange(start, min(start + step, longest))
            keys = read(a["layout"], a["k_cache"], entry_slots(a, int(request), span), a["rows"])
            magnitude = np.abs(keys)
            for t in tokens:
                dots = q[t] @ keys.T
                visible = span < lens[t]
                exact[t, span] = np.where(visible, w[t] @ np.maximum(dots, 0.0), -np.inf)
                bound[t, span] = BOUND * ((np.abs(w[t]) @ np.abs(q[t])) @ magnitude.T)
    return exact, bound


def expected(a: dict[str, Any], dtypes: dict[str, str]) -> list[Any]:
    """Shapes: -> f64 [T, max_len], f64 [T, max_len]"""
    return list(scores(a, dtypes, a["max_len"]))
