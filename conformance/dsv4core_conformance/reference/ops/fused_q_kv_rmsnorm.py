"""`fused_q_kv_rmsnorm`: both projections divided by their root mean square, times a weight, rounded once."""

from __future__ import annotations

from typing import Any

from dsv4core_conformance.reference.ca1 import rms_norm, rounded


def expected(a: dict[str, Any], dtypes: dict[str, str]) -> list[Any]:
    """The normed query latent and key row. Shapes: -> f32 [T, Q], f32 [T, D]."""
    return [
        rounded(rms_norm(a[name], a[f"{half}_weight"], a["eps"]), dtypes[name])
        for name, half in (("qr", "q"), ("kv", "kv"))
    ]
