"""Arguments of `fused_indexer_q_rope_quant`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dsv4core_conformance.inputs.draws import activation
from dsv4core_conformance.inputs.hashed import Draws


def make(
    *, tokens: int = 3, heads: int = 4, format: str = "fp8", rotate: str = "none", weights: str = "bf16",
    table: int = 50, spread: int = 6, head_scale: float | None = None,
    softmax_scale: float = 128**-0.5, column: int = 0, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """`table` rows of angles; heads differ in size by 2^+-`spread`; `column` cuts q out of a wider tensor."""
    rng = Draws(seed, "indexer q")
    act = "f32" if format == "f32" else "bf16"
    size = 2.0 ** rng.integers(-spread, spread + 1, (tokens, heads, 1))
    q = activation(rng.standard_normal((tokens, heads, column + 128)) * size, act)
    angle = rng.uniform(-7, 7, (table, 32))
    return {
        "positions": torch.from_numpy(rng.integers(0, table, tokens)), "q": q[..., column:],
        "cos_sin": torch.from_numpy(np.concatenate((np.cos(angle), np.sin(angle)),
        axis=1).astype(np.float32)),
        "weights": activation(rng.standard_normal((tokens, heads)), weights), "softmax_scale": softmax_scale,
        "head_scale": heads**-0.5 if head_scale is None else head_scale, "format": format, "rotate": rotate,
    }  # fmt: skip
