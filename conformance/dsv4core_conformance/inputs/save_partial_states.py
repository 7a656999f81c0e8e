"""Arguments of `save_partial_states`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dsv4core_conformance.inputs import pages as memory
from dsv4core_conformance.inputs.numbers import Kind, Numbers, integers, tensor
from dsv4core_conformance.inputs.pages import Place, Slots
from dsv4core_conformance.inputs.tokens import positions_of


def make(
    *, tokens: int = 9, width: int = 1024, ratio: int = 4, rows: int = 4,
    pages: int | None = None, place: Place | None = None, slots: Slots = "permuted", values: Kind = "normal",
    positions: Sequence[int] | int | None = None, seed: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """The two halves of a compressor's projection, which are column slices of one tensor."""
    source, pages = Numbers(seed), pages or tokens // rows + 2
    both = tensor(source.of(values, tokens, 2 * width))
    return {
        "kv": both[:, :width],
        "score": both[:, width:],
        "ape": tensor(source.normal(ratio, width)),
        "positions": integers(positions_of(source, positions, tokens)),
        "state_cache": memory.states(pages, rows, width, place),
        "slot_mapping": memory.slots(source, tokens, pages * rows, slots),
        "ratio": ratio,
    }
