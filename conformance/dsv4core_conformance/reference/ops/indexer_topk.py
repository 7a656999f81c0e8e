"""What `indexer_topk` must return: the k largest visible scores, as ascending indices."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

I32 = NDArray[np.int32]


def chosen(scores: NDArray[np.floating], visible: int, k: int) -> I32:
    """The k best of the first `visible` scores, ascending, -1 behind; a tie goes to the lower index.

    -0 and +0 tie, NaN ranks with -inf. Shapes: scores [n] -> i32 [k]
    """
    row = np.asarray(scores[:visible], dtype=np.float64) + 0.0
    best = np.argsort(-np.where(np.isnan(row), -np.inf, row), kind="stable")[:k]
    out = np.full(k, -1, dtype=np.int32)
    out[: len(best)] = np.sort(best)
    return out


def expected(a: dict[str, Any], dtypes: dict[str, str]) -> list[Any]:
    """The lists of all tokens. Shapes: logits f32 [T, L], context_lens i32 [T] -> i32 [T, k]"""
    rows = [chosen(row, int(n), a["k"]) for row, n in zip(a["logits"], a["context_lens"], strict=True)]
    return [np.array(rows, dtype=np.int32).reshape(len(rows), a["k"])]
