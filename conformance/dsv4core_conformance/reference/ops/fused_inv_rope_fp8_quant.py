"""`fused_inv_rope_fp8_quant`: the attention output turned back and quantised without a rounding between."""

from __future__ import annotations

from typing import Any

import numpy as np

from dsv4core_conformance.reference.ca1 import F32, blocks_e4m3, rope
from dsv4core_conformance.reference.quant import FLOOR_OUTPUT

BLOCK = 128


def quantised(o: F32, groups: int, scale_format: str) -> list[Any]:
    """Codes of a turned output and their scales. Shapes: f32 [T, H, 512] -> u8 [T, G, n] and as below."""
    grouped = o.reshape(len(o), groups, o.shape[1] // groups * 512)
    codes, exponent = blocks_e4m3(grouped, BLOCK, FLOOR_OUTPUT)
    if scale_format == "f32":
        return [codes, np.ldexp(np.float32(1), exponent).astype(np.float32)]
    words = np.clip(exponent + 127, 1, 254).astype(np.uint8)
    return [codes, np.ascontiguousarray(words).view("<i4")]


def expected(a: dict[str, Any], dtypes: dict[str, str]) -> list[Any]:
    """Codes and their scales. Shapes: -> u8 [T, G, n], f32 [T, G, n / 128] or i32 [T, G, n / 512]."""
    o = rope(a["o"], a["cos_sin"][a["positions"]][:, None], inverse=True)
    return quantised(o, a["groups"], a["scale_format"])
