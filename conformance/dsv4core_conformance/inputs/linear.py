"""Arguments of `linear`, and weights in every format."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsv4core_conformance.inputs.draws import TYPES, activation
from dsv4core_conformance.inputs.hashed import Draws
from dsv4core_conformance.reference.quant import e4m3_codes


def quantised_blocks(outputs: int, inputs: int, scale: str, rng: Draws) -> tuple[Tensor, Tensor]:
    """An e4m3 matrix and one scale per 128 x 128 block: "f32", "u8" or "e8m0". Shapes: [out, in], [blocks]"""
    codes = torch.from_numpy(e4m3_codes(rng.standard_normal((outputs, inputs)) * 100)).view(
        torch.float8_e4m3fn
    )
    shape = (-(-outputs // 128), -(-inputs // 128))
    if scale == "f32":
        return codes, torch.from_numpy(rng.uniform(0.5, 3, shape).astype(np.float32) / 4096)
    byte = torch.from_numpy(rng.integers(112, 118, shape).astype(np.uint8))
    return codes, byte if scale == "u8" else byte.view(torch.float8_e8m0fnu)


def make(
    *, tokens: int = 5, inputs: int = 256, outputs: int = 130, format: str = "bf16", scale: str = "e8m0",
    act: str = "bf16", out: str = "bf16", global_scale: float = 2.0**-6, column: int = 0, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """`scale` is the type of block scales; `column` cuts x out of a wider tensor.

    Weights fit bf16 with every `global_scale` that is a power of two.
    """
    rng = Draws(seed, "linear", format)
    x = activation(rng.standard_normal((tokens, column + inputs)), act)[:, column:]
    scales = overall = None
    if format == "bf16":
        weight = activation(rng.standard_normal((outputs, inputs)) * inputs**-0.5, act)
    elif format == "fp8_block":
        weight, scales = quantised_blocks(outputs, inputs, scale, rng)
    else:
        weight = torch.from_numpy(rng.integers(0, 256, (outputs, inputs // 2)).astype(np.uint8))
        if format == "nvfp4":
            codes = rng.integers(0x20, 0x68, (outputs, inputs // 16)).astype(np.uint8)
            scales, overall = torch.from_numpy(codes).view(torch.float8_e4m3fn), torch.tensor([global_scale])
        else:
            byte = torch.from_numpy(rng.integers(118, 124, (outputs, inputs // 32)).astype(np.uint8))
            scales = byte.view(torch.float8_e8m0fnu) if scale == "e8m0" else byte
    return {
        "x": x, "weight": weight, "scales": scales, "global_scale": overall, "format": format,
        "out_dtype": TYPES[out],
    }  # fmt: skip
