"""Softmax attention of one token over rows that are keys and values, with the scale of its bound."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def attend(q: F64, keys: F64, sink: F64, scale: float) -> tuple[F64, F64, F64]:
    """Output, natural log-sum-exp without the sink, and L2 norm of sum_j p_j |k_j|, of every head.

    p_j is the share of key j beside all keys and the sink. Without a key: 0, +inf and 0. A sink of -inf has
    no effect, one of +inf makes the output 0. Shapes: q [H, D], keys [n, D], sink [H] -> [H, D], [H], [H]
    """
    heads = len(q)
    if len(keys) == 0:
        return np.zeros_like(q), np.full(heads, np.inf), np.zeros(heads)
    logits = scale * (q @ keys.T)
    top = logits.max(axis=1, keepdims=True)
    lse = (top + np.log(np.exp(logits - top).sum(axis=1, keepdims=True)))[:, 0]
    with np.errstate(over="ignore"):
        kept = 1.0 / (1.0 + np.exp(sink - lse))
    p = np.exp(logits - lse[:, None]) * kept[:, None]
    return p @ keys, lse, np.linalg.norm(p @ np.abs(keys), axis=1)


def attend_lists(q: F64, keys: list[F64], sink: F64, scale: float) -> list[F64]:
    """`attend` for every token and its own keys. Shapes: q [T, H, D], keys T of [n, D], sink [H]"""
    o, lse, size = np.zeros(q.shape), np.zeros(q.shape[:2]), np.zeros(q.shape[:2])
    for t, rows in enumerate(keys):
        o[t], lse[t], size[t] = attend(q[t], rows, sink, scale)
    return [o, lse, size]
