"""Arguments of `quantize_and_insert_k_cache`."""

from __future__ import annotations

from typing import Any

import numpy as np

from dsv4core_conformance.inputs import pages as memory
from dsv4core_conformance.inputs.numbers import Kind, Numbers, tensor
from dsv4core_conformance.inputs.pages import Place, Slots
from dsv4core_conformance.inputs.tokens import activations_beside


def make(
    *, tokens: int = 9, layout: str = "fp8_ds_mla", rows: int = 64,
    pages: int | None = None, place: Place | None = None, act: str | None = None, slots: Slots = "permuted",
    values: Kind | np.ndarray = "normal", seed: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """Key rows and pages of poison to write them into."""
    source, pages = Numbers(seed), pages or tokens // rows + 2
    return {
        "k": tensor(
            values if isinstance(values, np.ndarray) else source.of(values, tokens, 512),
            act or activations_beside(layout),
        ),
        "k_cache": memory.pages(layout, pages, rows, place),
        "slot_mapping": memory.slots(source, tokens, pages * rows, slots),
        "rows": rows,
        "layout": layout,
    }
