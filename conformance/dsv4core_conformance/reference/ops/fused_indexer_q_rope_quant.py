"""What `fused_indexer_q_rope_quant` must return, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..quant import e2m1_codes, e4m3_codes, exponent_e2m1, exponent_e4m3, to_bf16

F32 = NDArray[np.float32]


def rotated(x: F32, cos: F32, sin: F32) -> F32:
    """Interleaved pairs of the last 64 channels turned; every product and every sum is rounded on its own.

    Shapes: x [T, H, 128], cos and sin [T, 1, 32] -> [T, H, 128]
    """
    out = x.astype(np.float32)
    even, odd = x[..., 64::2], x[..., 65::2]
    out[..., 64::2] = even * cos - odd * sin
    out[..., 65::2] = even * sin + odd * cos
    return out


def hadamard(x: F32) -> F32:
    """Butterflies with strides 1, 2, ..., 64, one multiplication by 128^-0.5, one rounding to bf16.

    Shapes: [..., 128] -> [..., 128]
    """
    for stride in (1, 2, 4, 8, 16, 32, 64):
        pairs = x.reshape(*x.shape[:-1], 64 // stride, 2, stride)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        x = np.stack((a + b, a - b), axis=-2).reshape(x.shape)
    return to_bf16((x * np.float32(128**-0.5)).astype(np.float64)).astype(np.float32)


def expected(a: dict[str, Any], dtypes: dict[str, str]) -> list[Any]:
    """RoPE, bf16, Hadamard where asked for, codes; and the weights with every scale folded in, one by one.

    Shapes: q f32 [T, H, 128] -> values ("fp8": u8 [T, H, 128], "mxfp4": u8 [T, H, 64], "f32": f32), scales u8
    [T, H, 4] or None, weights f32 [T, H]
    """
    table = a["cos_sin"][a["positions"]][:, None]
    x = rotated(a["q"], table[..., :32], table[..., 32:])
    w = a["weights"].astype(np.float32)
    if a["format"] != "f32":
        x = to_bf16(x.astype(np.float64)).astype(np.float32)
    if a["rotate"] == "hadamard":
        x = hadamard(x)
    wide, scales = x.astype(np.float64), None
    if a["format"] == "f32":
        values: Any = x
    elif a["format"] == "fp8":
        exponent = exponent_e4m3(np.abs(wide).max(axis=-1, initial=0.0))
        values = e4m3_codes(np.ldexp(wide, -exponent[..., None]))
        w = w * np.ldexp(np.float32(1), exponent).astype(np.float32)
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
