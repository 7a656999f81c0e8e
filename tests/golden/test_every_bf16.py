"""Every bf16 value: the library's codes and scale exponents are those of the numpy encoder."""

from __future__ import annotations

import numpy as np
import torch

from dsv4core.numerics import e2m1, e4m3, ue8m0
from dsv4core_conformance.reference import quant

WORDS = np.arange(2**16, dtype=np.uint32)
FINITE = (WORDS << 16).view(np.float32)[(WORDS & 0x7F80) != 0x7F80]


def library(function: object, values: np.ndarray) -> np.ndarray:
    assert callable(function)
    return function(torch.from_numpy(values)).numpy()


def test_e4m3_codes() -> None:
    assert (library(e4m3.encode, FINITE) == quant.e4m3_codes(FINITE.astype(np.float64))).all()


def test_e4m3_codes_of_f32_values_between_bf16_ones() -> None:
    near = np.concatenate([np.nextafter(FINITE, np.float32(side)) for side in (-np.inf, np.inf)])
    near = near[np.isfinite(near)]
    assert (library(e4m3.encode, near) == quant.e4m3_codes(near.astype(np.float64))).all()


def test_e2m1_codes() -> None:
    assert (library(e2m1.encode, FINITE) == quant.e2m1_codes(FINITE.astype(np.float64))).all()


def test_scale_exponents() -> None:
    amax = FINITE[FINITE > 0]
    floored = np.maximum(amax, np.float32(1e-4))
    assert (library(ue8m0.exponent_e4m3, floored) == quant.exponent_e4m3(amax.astype(np.float64))).all()
    floored = np.maximum(amax, np.float32(quant.FLOOR_E2M1))
    assert (library(ue8m0.exponent_e2m1, floored) == quant.exponent_e2m1(amax.astype(np.float64))).all()


def test_bf16_rounding_of_f32() -> None:
    values = np.concatenate(
        [FINITE, np.nextafter(FINITE, np.float32(np.inf)), FINITE * np.float32(1 + 2.0**-9)]
    )
    values = values[np.isfinite(values)]
    theirs = torch.from_numpy(values).bfloat16().double().numpy()
    assert np.array_equal(theirs, quant.to_bf16(values.astype(np.float64)))
