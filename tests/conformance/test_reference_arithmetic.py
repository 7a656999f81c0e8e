"""The suite's float32 arithmetic against exact rationals and float64."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from dsv4core_conformance.inputs.numbers import Numbers
from dsv4core_conformance.reference import ca1


def test_exp_is_within_its_error_and_zero_far_below() -> None:
    x = -np.abs(Numbers(1).normal(20_000)) * np.float32(30)
    x = np.append(x[x >= -87], np.float32([0, -87, -0.0]))
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(ca1.exp(x) - exact) / exact).max() < 8.2e-8
    assert (ca1.exp(np.float32([-87.00001, -1e30, -np.inf])) == 0).all()


@pytest.mark.parametrize("power", [-60, 0, 50])
def test_norm_sums_exact_squares(power: int) -> None:
    y = np.ldexp(Numbers(2).normal(3, 96), power).astype(np.float32)
    got = ca1.inverse_rms(y, 0.0)
    for row, inv in zip(y, got, strict=True):
        k = 20 - (math.frexp(float(np.abs(row).max()))[1] - 1)
        squares = sum(round(Fraction(float(v)) * Fraction(2) ** k) ** 2 for v in row)
        mean = Fraction(squares) / Fraction(2) ** (2 * k) / 96
        assert abs(float(inv[0]) * math.sqrt(mean) - 1) < 3e-7


def test_norm_does_not_depend_on_order() -> None:
    y = Numbers(3).spread(4, 512)
    assert (ca1.inverse_rms(y, 1e-6) == ca1.inverse_rms(y[:, ::-1].copy(), 1e-6)).all()


@pytest.mark.parametrize("window", [8, 128])
def test_pooling_is_a_softmax_over_valid_rows(window: int) -> None:
    source = Numbers(4)
    kv, score = source.normal(3, window, 16), source.normal(3, window, 16) * np.float32(4)
    valid = np.ones((3, window), dtype=bool)
    valid[1, : window // 2], valid[2, :-1] = False, False
    weight = np.where(valid[..., None], np.exp(score.astype(np.float64)), 0)
    exact = (weight * kv).sum(axis=1) / weight.sum(axis=1)
    assert np.abs(ca1.pool(kv, score, valid) - exact).max() < 1e-5
    assert (ca1.pool(kv, score, valid)[2] == kv[2, -1]).all()


def test_rope_turns_and_turns_back() -> None:
    x, angle = Numbers(5).normal(6, 512), Numbers(6).normal(6, 32).astype(np.float64)
    table = np.concatenate((np.cos(angle), np.sin(angle)), axis=1).astype(np.float32)
    turned = ca1.rope(x, table)
    assert (turned[:, :448] == x[:, :448]).all()
    pairs = x[:, 448::2] + 1j * x[:, 449::2]
    wanted = pairs * np.exp(1j * angle)
    assert np.abs(turned[:, 448::2] + 1j * turned[:, 449::2] - wanted).max() < 1e-6
    assert np.abs(ca1.rope(turned, table, inverse=True) - x).max() < 1e-6


def test_hadamard_is_the_matrix() -> None:
    x = ca1.bf16(Numbers(7).normal(5, 128))
    matrix = np.ones((1, 1))
    while len(matrix) < 128:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    exact = x.astype(np.float64) @ matrix / np.sqrt(128)
    assert np.abs(ca1.hadamard(x) - exact).max() < 2.0**-8 * np.abs(exact).max()
