"""What `sparse_prefill` must come near: attention of every query over its listed workspace rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from .attention import attend_lists


def expected(a: dict[str, Any], dtypes: dict[str, str]) -> list[Any]:
    """Negative indices, those behind the workspace and everything behind the length are no keys.

    Shapes: q f32 [T, H, 512], kv f32 [S, 512], indices i32 [T, K], lens i32 [T], attn_sink f32 [H] -> f64
    [T, H, 512], [T, H], [T, H]
    """
    keys = []
    for listed, length in zip(a["indices"], a["lens"], strict=True):
        rows = listed[: int(length)].astype(np.int64)
        keys.append(a["kv"][rows[(rows >= 0) & (rows < len(a["kv"]))]].astype(np.float64))
    return list(attend_lists(a["q"].astype(np.float64), keys, a["attn_sink"].astype(np.float64), a["scale"]))
