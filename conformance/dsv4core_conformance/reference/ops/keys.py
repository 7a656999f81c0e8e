"""Values of cached rows, read from the bytes of their pages."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..quant import F64, U8
from .linear import e2m1_values, e4m3_values, powers

# Bytes of a row, and of its scales behind all rows of the page.
RECORD = {
    "fp8_ds_mla": (576, 8), "fp8_ds_mla_fnuz": (576, 8), "bf16_row": (1024, 0), "fp8_row": (512, 0),
    "f32_row": (2048, 0), "index_fp8": (128, 4), "index_fp8_ue8m0x4": (128, 4), "index_fp8_hadamard_f32": (128, 4),
    "index_mxfp4": (64, 4), "index_mxfp4_hadamard": (64, 4), "index_f32": (512, 0),
}  # fmt: skip


def keys_at(pages: U8, slots: NDArray[np.int64], layout: str, rows: int) -> F64:
    """Rows as numbers, without a rounding. Shapes: pages u8 [N, B], slots i64 [n] -> f64 [n, 512 or 128]"""
    size, tail = RECORD[layout]
    page, row = slots[:, None] // rows, slots[:, None] % rows
    front = pages[page, row * size + np.arange(size)]
    scale = pages[page, rows * size + row * tail + np.arange(tail)]
    return _values(layout, front, scale)


def _f32(data: U8) -> F64:
    return np.ascontiguousarray(data).view("<f4").astype(np.float64)


def _bf16(data: U8) -> F64:
    words = np.ascontiguousarray(data).view("<u2").astype(np.uint32) << 16
    return words.view(np.float32).astype(np.float64)


def _values(layout: str, front: U8, scale: U8) -> F64:
    if layout in ("f32_row", "index_f32"):
        return _f32(front)
    if layout == "bf16_row":
        return _bf16(front)
    if layout == "fp8_row":
        return e4m3_values(front)
    if layout in ("index_fp8", "index_fp8_hadamard_f32"):
        return e4m3_values(front) * _f32(scale)
    if layout == "index_fp8_ue8m0x4":
        return e4m3_values(front) * powers(scale[:, :1])
    if layout.startswith("index_mxfp4"):
        return e2m1_values(front) * np.repeat(powers(scale), 32, axis=1)
    codes = front[:, :448]
    nope = e4m3_values(codes)
    if layout == "fp8_ds_mla_fnuz":  # half of OCP's values, 0x7f is 240 and 0x80 is NaN
        nope = np.where((codes & 0x7F) == 0x7F, np.where(codes & 0x80, -480.0, 480.0), nope) / 2
        nope = np.where(codes == 0x80, np.nan, nope)
    return np.concatenate((nope * np.repeat(powers(scale[:, :7]), 64, axis=1), _bf16(front[:, 448:])), axis=1)
