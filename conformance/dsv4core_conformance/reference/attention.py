"""Attention of one query over a list of keys that are also the values, with a sink in the denominator."""

from __future__ import annotations

from typing import Literal

import numpy as np

from .quant import F64, to_bf16


def attend(
    q: F64, keys: F64, sink: F64, scale: float, p_dtype: Literal["fp32", "bf16"] = "fp32"
) -> tuple[F64, F64]:
    """Output and log-sum-exp (natural, without the sink) of every head of one token.

    Without a key the output is exactly 0 and the log-sum-exp +inf. A sink of -inf has no effect, one of
    +inf makes the output 0.

    Shapes: q [h, d], keys [k, d], sink [h] -> (o [h, d], lse [h])
    """
    if len(keys) == 0:
        return np.zeros_like(q), np.full(len(q), np.inf)
    logits = (q @ keys.T) * scale
    top = logits.max(axis=1)
    unnormed = np.exp(logits - top[:, None])
    total = unnormed.sum(axis=1)
    weights = to_bf16(unnormed) if p_dtype == "bf16" else unnormed
    with np.errstate(over="ignore"):
        out = (weights @ keys) / (total + np.exp(sink - top))[:, None]
    return out, top + np.log(total)
