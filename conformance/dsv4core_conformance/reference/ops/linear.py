"""What `linear` must come near: x W^T in float64, whatever format W is stored in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv4core_conformance.reference.quant import F64, U8
from dsv4core_conformance.reference.rows import E2M1, E4M3

BLOCK = 128


def e2m1_values(packed: U8) -> F64:
    """Values of e2m1 pairs, the even element in the low nibble. Shapes: u8 [..., n] -> f64 [..., 2n]"""
    return E2M1[np.stack((packed & 15, packed >> 4), axis=-1).reshape(*packed.shape[:-1], -1)]


def powers(scale_bytes: U8) -> F64:
    """2^(byte - 127) of UE8M0 bytes. Shapes: u8 [...] -> f64 [...]"""
    return np.ldexp(1.0, scale_bytes.astype(np.int64) - 127)


def scale_values(scales: NDArray[Any], dtype: str) -> F64:
    """Scales as numbers: f32 themselves, e4m3 codes, or UE8M0 bytes. Shapes: [...] -> f64 [...]"""
    if dtype == "f32":
        return scales.astype(np.float64)
    return E4M3[scales] if dtype == "float8_e4m3fn" else powers(scales)


def by_blocks(codes: U8, scales: F64) -> F64:
    """An e4m3 matrix with one scale per 128 x 128 block, the last ones cut off by its edges.

    Shapes: u8 [out, in], f64 [ceil(out / 128), ceil(in / 128)] -> f64 [out, in]
    """
    down = np.repeat(scales, BLOCK, axis=0)[: codes.shape[0]]
    return E4M3[codes] * np.repeat(down, BLOCK, axis=1)[:, : codes.shape[1]]


def matrix(a: dict[str, Any], dtypes: dict[str, str]) -> F64:
    """The weight as numbers. Shapes: -> f64 [out, in]"""
    if a["format"] == "bf16":
        return a["weight"].astype(np.float64)
    scales = scale_values(a["scales"], dtypes["scales"])
    if a["format"] == "fp8_block":
        return by_blocks(a["weight"], scales)
    group = 16 if a["format"] == "nvfp4" else 32
    values = e2m1_values(a["weight"]) * np.repeat(scales, group, axis=1)
    return values * float(a["global_scale"][0]) if a["format"] == "nvfp4" else values


def expected(a: dict[str, Any], dtypes: dict[str, str]) -> list[Any]:
    """Shapes: x f32 [T, in], weight per format -> f64 [T, out]"""
    return [a["x"].astype(np.float64) @ matrix(a, dtypes).T]
