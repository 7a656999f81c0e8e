"""Arguments of `sparse_indexer`."""

from __future__ import annotations

from typing import Any

from dsv4core_conformance.inputs.indexer_logits import common


def make(*, k: int = 16, workspace_bytes: int = 1 << 26, **options: Any) -> dict[str, Any]:
    """Other options as in `indexer_logits.common`."""
    return {**common(**options), "k": k, "workspace_bytes": workspace_bytes}
