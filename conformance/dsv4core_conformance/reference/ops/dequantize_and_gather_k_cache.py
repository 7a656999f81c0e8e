"""`dequantize_and_gather_k_cache`: the last rows of every request, dense."""

from __future__ import annotations

from typing import Any

import numpy as np

from dsv4core_conformance.reference import rows
from dsv4core_conformance.reference.ca1 import rounded


def expected(a: dict[str, Any], dtypes: dict[str, str]) -> list[Any]:
    """No result; rows `offset` .. `offset + g` of every request's part of `out` are written."""
    counts = a["seq_lens"] if a["gather_lens"] is None else a["gather_lens"]
    for b, (length, count) in enumerate(zip(a["seq_lens"], counts, strict=True)):
        index = np.arange(int(length) - int(count), int(length))
        slots = rows.table_slots(a["block_table"], b, index, a["rows"])
        values = rows.read(a["layout"], a["k_cache"], slots, a["rows"])
        with np.errstate(over="ignore"):
            a["out"][b, a["offset"] : a["offset"] + int(count)] = rounded(values, dtypes["out"])
    return []
