"""`fused_qnorm_rope_kv_insert`: heads normed and rotated, the key row rotated and written into its page."""

from __future__ import annotations

from typing import Any

import numpy as np

from dsv4core_conformance.reference import rows
from dsv4core_conformance.reference.ca1 import rms_norm, rope, rounded


def expected(a: dict[str, Any], dtypes: dict[str, str]) -> list[Any]:
    """The queries, with heads of zeros up to `padded_heads`; `k_cache` is written.

    Shapes: -> f32 [T, padded heads, 512]
    """
    turn = a["cos_sin"][a["positions"]]
    q = a["q"]
    out = np.zeros((len(q), a["padded_heads"], q.shape[2]), dtype=np.float32)
    out[:, : q.shape[1]] = rounded(rope(rms_norm(q, None, a["eps"]), turn[:, None]), dtypes["q"])
    slots = a["slot_mapping"]
    keys = rope(a["kv"][: len(slots)], turn[: len(slots)])
    rows.write(a["layout"], a["k_cache"], slots, a["rows"], keys)
    return [out]
