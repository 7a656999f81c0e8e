"""`fused_inv_rope_fp8_quant`: the attention output turned back and quantised without a rounding between."""

from __future__ import annotations

from typing import Any

import numpy as np

from dsv4core_conformance.reference.ca1 import blocks_e4m3, rope
from dsv4core_conformance.reference.quant import FLOOR_OUTPUT

BLOCK = 128


def expected(a: dict[str, Any], dtypes: dict[str, str]) -> list[Any]:
    """Codes and their scales. Shapes: -> u8 [T, G, n], f32 [T, G, n / 128] or i32 [T, G, n / 512]."""
    o = rope(a["o"], a["cos_sin"][a["positions"]][:, None], inverse=True)
    grouped = o.reshape(len(o), a["groups"], o.shape[1] // a["groups"] * 512)
    codes, exponent = blocks_e4m3(grouped, BLOCK, FLOOR_OUTPUT)
    if a["scale_format"] == "f32":
        return [codes, np.ldexp(np.float32(1), exponent).astype(np.float32)]
    words = np.clip(exponent + 127, 1, 254).astype(np.uint8)
    return [codes, np.ascontiguousarray(words).view("<i4")]
