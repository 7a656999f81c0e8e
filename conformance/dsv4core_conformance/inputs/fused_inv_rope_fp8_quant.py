"""Arguments of `fused_inv_rope_fp8_quant`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dsv4core_conformance.inputs import inverse_rope
from dsv4core_conformance.inputs.numbers import Kind


def make(
    *, tokens: int = 7, heads: int = 4, groups: int = 2, scale_format: str = "f32", act: str = "bf16",
    values: Kind | np.ndarray = "normal", positions: Sequence[int] | int | None = None,
    table: str = "compress", seed: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """Attention outputs as for `inverse_rope`, and how many groups of heads share a projection."""
    made = inverse_rope.make(
        tokens=tokens, heads=heads, act=act, values=values, positions=positions, table=table, seed=seed
    )
    return {**made, "groups": groups, "scale_format": scale_format}
