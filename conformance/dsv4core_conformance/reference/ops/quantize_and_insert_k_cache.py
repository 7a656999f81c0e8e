"""`quantize_and_insert_k_cache`: rotated key rows into their pages."""

from __future__ import annotations

from typing import Any

from dsv4core_conformance.reference import rows


def expected(a: dict[str, Any], dtypes: dict[str, str]) -> list[Any]:
    """No result; `k_cache` is written, one row per slot that is not negative."""
    slots = a["slot_mapping"]
    rows.write(a["layout"], a["k_cache"], slots, a["rows"], a["k"][: len(slots)])
    return []
