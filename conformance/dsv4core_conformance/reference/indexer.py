"""The indexer's scores and its choice of entries."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .options import Options
from .quant import F64, to_bf16

Indices = NDArray[np.int64]


def index_scores(q: F64, weights: F64, keys: F64, options: Options) -> F64:
    """Score of every entry for every query: sum over heads of weight * relu(q . k).

    Shapes: q [n, h, d], weights [n, h] (scales folded in), keys [e, d] -> [n, e]
    """
    if options.idx_score_dtype == "fp32":
        return np.stack([w @ np.maximum(one @ keys.T, 0) for one, w in zip(q, weights, strict=True)])
    return np.stack(
        [
            to_bf16(to_bf16(np.maximum(to_bf16(one @ keys.T), 0) * w[:, None]).sum(axis=0))
            for one, w in zip(q, weights, strict=True)
        ]
    )


def select(scores: F64, visible: int, k: int) -> Indices:
    """The k best of the first `visible` entries, ascending; equal scores prefer the lower index.

    Shapes: scores [e] -> i64 [min(k, visible)]
    """
    order = np.argsort(-scores[:visible], kind="stable")
    return np.sort(order[:k]).astype(np.int64)
