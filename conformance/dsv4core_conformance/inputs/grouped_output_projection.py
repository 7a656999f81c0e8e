"""Arguments of `grouped_output_projection`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dsv4core_conformance.inputs.draws import activation
from dsv4core_conformance.inputs.hashed import Draws
from dsv4core_conformance.inputs.linear import quantised_blocks
from dsv4core_conformance.reference.quant import e4m3_codes


def make(
    *, tokens: int = 4, heads: int = 4, groups: int = 2, lora: int = 16, o: str = "bf16",
    weight: str = "bf16",
    seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """`o`: "bf16", "f32", or e4m3 with scales "e4m3_f32" / "e4m3_ue8m0x4"; `weight`:
    "bf16", "f32", or e4m3 with scales "u8", "e8m0" or "f32_scales"."""
    rng = Draws(seed, "grouped")
    inputs = heads * 512 // groups
    if weight in ("bf16", "f32"):
        wo_a, wo_a_scales = (
            activation(rng.standard_normal((groups * lora, inputs)) * inputs**-0.5, weight),
            None,
        )
    else:
        wo_a, wo_a_scales = quantised_blocks(groups * lora, inputs, weight.removesuffix("_scales"), rng)
    values = rng.standard_normal((tokens, heads, 512))
    o_scales = None
    if o in ("bf16", "f32"):
        data = activation(values, o)
    else:
        data = torch.from_numpy(e4m3_codes(values.reshape(tokens, groups, inputs) * 100)).view(
            torch.float8_e4m3fn
        )
        byte = rng.integers(115, 124, (tokens, groups, inputs // 128)).astype(np.uint8)
        if o == "e4m3_f32":
            o_scales = torch.from_numpy(np.ldexp(1.0, byte.astype(np.int64) - 127).astype(np.float32))
        else:
            o_scales = torch.from_numpy(np.ascontiguousarray(byte).view(np.int32).copy())
    return {"o": data, "o_scales": o_scales, "wo_a": wo_a, "wo_a_scales": wo_a_scales, "groups": groups}
