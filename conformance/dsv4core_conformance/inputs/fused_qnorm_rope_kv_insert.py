"""Arguments of `fused_qnorm_rope_kv_insert`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dsv4core_conformance.inputs import pages as memory
from dsv4core_conformance.inputs.numbers import Kind, Numbers, integers, tensor
from dsv4core_conformance.inputs.pages import Place, Slots
from dsv4core_conformance.inputs.tokens import EPS, activations_beside, positions_of, table_up_to


def make(
    *, tokens: int = 9, heads: int = 2, padded_heads: int | None = None, layout: str = "fp8_ds_mla",
    rows: int = 64, pages: int | None = None, place: Place | None = None, act: str | None = None,
    slots: Slots = "permuted", values: Kind | np.ndarray = "normal", q_values: Kind | np.ndarray = "normal",
    positions: Sequence[int] | int | None = None, table: str = "main", seed: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """Queries and key rows of tokens at positions, and pages of poison to write the rows into."""
    source, act, pages = Numbers(seed), act or activations_beside(layout), pages or tokens // rows + 2
    at = positions_of(source, positions, tokens)
    return {
        "q": tensor(
            q_values if isinstance(q_values, np.ndarray) else source.of(q_values, tokens, heads, 512), act
        ),
        "kv": tensor(values if isinstance(values, np.ndarray) else source.of(values, tokens, 512), act),
        "positions": integers(at),
        "cos_sin": table_up_to(table, at),
        "k_cache": memory.pages(layout, pages, rows, place),
        "slot_mapping": memory.slots(source, tokens, pages * rows, slots),
        "rows": rows,
        "layout": layout,
        "eps": EPS,
        "padded_heads": padded_heads or heads,
    }
