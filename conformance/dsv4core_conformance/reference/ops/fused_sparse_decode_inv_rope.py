"""What `fused_sparse_decode_inv_rope` must come near: `sparse_decode`'s output turned back, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from dsv4core_conformance.reference.quant import F64

from . import sparse_decode

ROPE = 64


def turned_back(o: F64, cos_sin: F64) -> F64:
    """Neighbours among the last 64 channels turned by minus the angles of a row.

    Shapes: o [T, H, 512], cos_sin [T, 64] (32 cosines, 32 sines) -> [T, H, 512]
    """
    cos, sin = (part[:, None] for part in np.split(cos_sin, 2, axis=1))
    even, odd = o[..., -ROPE::2], o[..., -ROPE + 1 :: 2]
    found = o.copy()
    found[..., -ROPE::2], found[..., -ROPE + 1 :: 2] = even * cos + odd * sin, odd * cos - even * sin
    return found


def expected(a: dict[str, Any], dtypes: dict[str, str]) -> list[Any]:
    """The output before it is rounded, and the size that its bound is taken of: 0 where it must be 0.

    Shapes: arguments as `sparse_decode`'s, positions i64 [T], cos_sin f32 [P, 64] -> f64 [T, H, 512], [T, H]
    """
    o, _, size = sparse_decode.expected(a, dtypes)
    return [turned_back(o, a["cos_sin"][a["positions"]].astype(np.float64)), size]
