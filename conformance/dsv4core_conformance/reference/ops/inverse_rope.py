"""`inverse_rope`: the attention output turned back by its query's position."""

from __future__ import annotations

from typing import Any

from dsv4core_conformance.reference.ca1 import rope, rounded


def expected(a: dict[str, Any], dtypes: dict[str, str]) -> list[Any]:
    """The output, rounded once. Shapes: -> f32 [T, H, 512]."""
    return [rounded(rope(a["o"], a["cos_sin"][a["positions"]][:, None], inverse=True), dtypes["o"])]
