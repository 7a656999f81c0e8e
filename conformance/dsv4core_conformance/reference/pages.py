"""Bytes of cache pages, from float arrays: a second encoder that shares nothing with the library's own.

Layouts: fp8_ds_mla, fp8_ds_mla_fnuz, fp8_row, bf16_row, f32_row; index_fp8, index_fp8_ue8m0x4, index_mxfp4,
index_f32, and of values already rotated index_mxfp4_hadamard and index_fp8_hadamard_f32; state_f32. A page
holds `rows` rows; where a row has scales they follow behind all the rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .quant import (
    F64,
    U8,
    e2m1_codes,
    e4m3_codes,
    e4m3_fnuz_codes,
    exponent_e2m1,
    exponent_e4m3,
    exponent_e4m3_fnuz,
    plain_quotient,
    plain_scale,
    to_bf16,
)

ALIGNMENT = {
    "fp8_ds_mla": 576,
    "fp8_ds_mla_fnuz": 576,
    "index_fp8": 576,
    "index_fp8_ue8m0x4": 576,
    "index_fp8_hadamard_f32": 576,
    "index_mxfp4": 576,
    "index_mxfp4_hadamard": 576,
    "state_f32": 576,
    "bf16_row": 512,
    "fp8_row": 512,
    "f32_row": 1,
    "index_f32": 1,
}


def _bytes_of_f32(values: F64) -> U8:
    return (
        np.ascontiguousarray(values, dtype="<f4")
        .view(np.uint8)
        .reshape(*values.shape[:-1], 4 * values.shape[-1])
    )


def _bytes_of_bf16(values: F64) -> U8:
    words = np.ascontiguousarray(to_bf16(values), dtype="<f4").view("<u4") >> 16
    return words.astype("<u2").view(np.uint8).reshape(*values.shape[:-1], 2 * values.shape[-1])


def _scale_bytes(exponent: NDArray[np.int64]) -> U8:
    return np.clip(exponent + 127, 1, 254).astype(np.uint8)


def _fp8_ds_mla(values: F64, fnuz: bool = False) -> tuple[U8, U8]:
    rounded = to_bf16(values)
    blocks = rounded[..., :448].reshape(*values.shape[:-1], 7, 64)
    exponent = (exponent_e4m3_fnuz if fnuz else exponent_e4m3)(np.abs(blocks).max(axis=-1))
    encode = e4m3_fnuz_codes if fnuz else e4m3_codes
    codes = encode(np.ldexp(blocks, -exponent[..., None])).reshape(*values.shape[:-1], 448)
    unused = np.zeros((*values.shape[:-1], 1), dtype=np.uint8)
    return (
        np.concatenate([codes, _bytes_of_bf16(rounded[..., 448:])], axis=-1),
        np.concatenate([_scale_bytes(exponent), unused], axis=-1),
    )


def _index_fp8(values: F64) -> tuple[U8, U8]:
    rounded = to_bf16(values)
    exponent = exponent_e4m3(np.abs(rounded).max(axis=-1, keepdims=True))
    return e4m3_codes(np.ldexp(rounded, -exponent)), _bytes_of_f32(np.ldexp(1.0, exponent))


def _index_fp8_ue8m0x4(values: F64) -> tuple[U8, U8]:
    codes, scale = _index_fp8(values)
    exponent = np.frexp(scale.view("<f4").astype(np.float64))[1].astype(np.int64) - 1
    return codes, np.repeat(_scale_bytes(exponent), 4, axis=-1)


def _index_fp8_f32(values: F64) -> tuple[U8, U8]:
    rounded = to_bf16(values)
    scale = plain_scale(np.abs(rounded).max(axis=-1, keepdims=True))
    return e4m3_codes(plain_quotient(rounded, scale)), _bytes_of_f32(scale)


def _index_mxfp4(values: F64) -> tuple[U8, U8]:
    blocks = to_bf16(values).reshape(*values.shape[:-1], 4, 32)
    exponent = exponent_e2m1(np.abs(blocks).max(axis=-1))
    codes = e2m1_codes(np.ldexp(blocks, -exponent[..., None])).reshape(*values.shape[:-1], 128)
    return codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4)), _scale_bytes(exponent)


def _no_tail(encode: Callable[[F64], U8]) -> Callable[[F64], tuple[U8, U8]]:
    return lambda values: (encode(values), np.zeros((*values.shape[:-1], 0), dtype=np.uint8))


ENCODERS: dict[str, Callable[[F64], tuple[U8, U8]]] = {
    "fp8_ds_mla": _fp8_ds_mla,
    "fp8_ds_mla_fnuz": lambda values: _fp8_ds_mla(values, fnuz=True),
    "fp8_row": _no_tail(e4m3_codes),
    "index_fp8": _index_fp8,
    "index_fp8_ue8m0x4": _index_fp8_ue8m0x4,
    "index_fp8_hadamard_f32": _index_fp8_f32,
    "index_mxfp4": _index_mxfp4,
    "index_mxfp4_hadamard": _index_mxfp4,
    "bf16_row": _no_tail(_bytes_of_bf16),
    "f32_row": _no_tail(_bytes_of_f32),
    "index_f32": _no_tail(_bytes_of_f32),
    "state_f32": _no_tail(_bytes_of_f32),
}
"""Front bytes of rows and the bytes behind all rows, by layout, from float64 [..., width]."""


def encode_pages(layout: str, values: NDArray[np.floating]) -> U8:
    """Whole pages; bytes behind the last row or scale are zero. Raises KeyError for an unknown layout.

    Shapes: values [pages, rows, width] (state_f32: width 2W) -> u8 [pages, page bytes]
    """
    rows, tails = ENCODERS[layout](np.asarray(values, dtype=np.float64))
    count = len(values)
    payload = np.concatenate([rows.reshape(count, -1), tails.reshape(count, -1)], axis=1)
    padding = -payload.shape[1] % ALIGNMENT[layout]
    return np.pad(payload, ((0, 0), (0, padding)))
