"""What `sparse_indexer` may choose: float64 scores with their bound, and how many entries."""

from __future__ import annotations

from typing import Any

from .indexer_logits import scores


def expected(a: dict[str, Any], dtypes: dict[str, str]) -> list[Any]:
    """Shapes: -> f64 [T, n], f64 [T, n] with n the longest context, and k"""
    return [*scores(a, dtypes, int(a["context_lens"].max(initial=0))), a["k"]]
