"""Arguments of `inverse_rope`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dsv4core_conformance.inputs.numbers import Kind, Numbers, integers, tensor
from dsv4core_conformance.inputs.tokens import positions_of, table_up_to


def make(
    *, tokens: int = 7, heads: int = 2, act: str = "bf16", values: Kind | np.ndarray = "normal",
    positions: Sequence[int] | int | None = None, table: str = "compress", seed: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """Attention outputs of tokens at positions."""
    source = Numbers(seed)
    at = positions_of(source, positions, tokens)
    return {
        "o": tensor(values if isinstance(values, np.ndarray) else source.of(values, tokens, heads, 512), act),
        "positions": integers(at),
        "cos_sin": table_up_to(table, at),
    }
