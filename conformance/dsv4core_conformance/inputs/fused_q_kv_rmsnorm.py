"""Arguments of `fused_q_kv_rmsnorm`."""

from __future__ import annotations

from typing import Any

import numpy as np

from dsv4core_conformance.inputs.numbers import Kind, Numbers, tensor
from dsv4core_conformance.inputs.tokens import EPS


def make(
    *, tokens: int = 5, q_width: int = 96, kv_width: int = 512, act: str = "bf16", weights: str = "bf16",
    kv_weights: str | None = None,
    values: Kind | np.ndarray = "normal", seed: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """Two projections of numbers of a kind, or one array for both halves side by side.

    `kv_weights`: the type of kv_weight where it is another than q_weight's.
    """
    source = Numbers(seed)
    both = (
        values if isinstance(values, np.ndarray) else source.of(values, tokens, q_width + kv_width)
    )  # one draw, so that corners fall into both
    return {
        "qr": tensor(both[:, :q_width], act),
        "kv": tensor(both[:, q_width:], act),
        "q_weight": tensor(source.normal(q_width), weights),
        "kv_weight": tensor(source.normal(kv_width), kv_weights or weights),
        "eps": EPS,
    }
