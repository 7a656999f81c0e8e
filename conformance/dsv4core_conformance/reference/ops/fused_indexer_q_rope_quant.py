"""What `fused_indexer_q_rope_quant` must return, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np

from dsv4core_conformance.reference.ca1 import blocks_e4m3, hadamard, rope, rounded
from dsv4core_conformance.reference.quant import e2m1_codes, e4m3_codes, exponent_e2m1


def expected(a: dict[str, Any], dtypes: dict[str, str]) -> list[Any]:
    """RoPE, bf16, Hadamard where asked for, codes; and the weights with every scale folded in, one by one.

    Shapes: q f32 [T, H, 128] -> values ("fp8": u8 [T, H, 128], "mxfp4": u8 [T, H, 64], "f32": f32), scales u8
    [T, H, 4] or None, weights f32 [T, H]
    """
    x = rope(a["q"], a["cos_sin"][a["positions"]][:, None])
    x = rounded(x, "f32" if a["format"] == "f32" else "bf16")
    w = a["weights"].astype(np.float32)
    if a["rotate"] == "hadamard":
        x = hadamard(x)
    wide, scales = x.astype(np.float64), None
    if a["format"] == "f32":
        values: Any = x
    elif a["format"] == "fp8":
        values, exponent = blocks_e4m3(x, 128)
        w = w * np.ldexp(np.float32(1), exponent[..., 0]).astype(np.float32)
    elif a["format"] == "fp8_f32":
        scale = np.maximum(np.abs(x).max(axis=-1, initial=0.0), np.float32(1e-4)) / np.float32(448)
        values = e4m3_codes((x / scale[..., None]).astype(np.float64))
        w = w * scale
    else:
        blocks = wide.reshape(*wide.shape[:-1], 4, 32)
        byte = np.clip(exponent_e2m1(np.abs(blocks).max(axis=-1)) + 127, 1, 254)
        codes = e2m1_codes(np.ldexp(blocks, 127 - byte[..., None])).reshape(wide.shape)
        values, scales = codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4)), byte.astype(np.uint8)
    return [values, scales, (w * np.float32(a["softmax_scale"])) * np.float32(a["head_scale"])]
