"""Arguments of `fused_sparse_decode_inv_rope`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dsv4core_conformance.inputs import sparse_decode
from dsv4core_conformance.inputs.numbers import Numbers, integers
from dsv4core_conformance.inputs.tokens import positions_of, table_up_to


def make(
    *, groups: int = 2, scale_format: str = "none", positions: Sequence[int] | int | None = None,
    table: str = "compress", seed: int = 0, **attention: Any,
) -> dict[str, Any]:  # fmt: skip
    """What `sparse_decode` is given, without `out`; positions as for `inverse_rope`, and how to round."""
    made = sparse_decode.make(seed=seed, **attention)
    del made["out"]
    at = positions_of(Numbers(seed), positions, made["q"].shape[0])
    turned = {"positions": integers(at), "cos_sin": table_up_to(table, at)}
    return {**made, **turned, "groups": groups, "scale_format": scale_format}
