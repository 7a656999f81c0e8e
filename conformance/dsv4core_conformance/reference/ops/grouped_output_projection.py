"""What `grouped_output_projection` must come near: one matrix per group of heads, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from dsv4core_conformance.reference.quant import F64
from dsv4core_conformance.reference.rows import E4M3

from .linear import by_blocks, powers, scale_values


def _inputs(a: dict[str, Any], dtypes: dict[str, str]) -> F64:
    """Shapes: -> f64 [T, G, H * 512 / G]"""
    o, groups = a["o"], a["groups"]
    if a["o_scales"] is None:
        return o.astype(np.float64).reshape(len(o), groups, o.shape[1] // groups * o.shape[2])
    scales = a["o_scales"]
    if dtypes["o_scales"] == "int32":  # four UE8M0 bytes a word, the first block in the lowest
        words = np.ascontiguousarray(scales).astype("<i4")
        factor = powers(words.view(np.uint8).reshape(*scales.shape[:-1], -1))
    else:
        factor = scales.astype(np.float64)
    return E4M3[o] * np.repeat(factor, 128, axis=-1)


def expected(a: dict[str, Any], dtypes: dict[str, str]) -> list[Any]:
    """Group g multiplies its heads with rows g * o_lora .. of wo_a.

    Shapes: o f32 [T, H, 512] or codes [T, G, I], wo_a [G * o_lora, I], I = H * 512 / G -> f64 [T, G, o_lora]
    """
    x, weight = _inputs(a, dtypes), a["wo_a"]
    if a["wo_a_scales"] is None:
        dense = weight.astype(np.float64)
    else:
        dense = by_blocks(weight, scale_values(a["wo_a_scales"], dtypes["wo_a_scales"]))
    return [np.einsum("tgi,goi->tgo", x, dense.reshape(a["groups"], -1, dense.shape[1]), optimize=True)]
