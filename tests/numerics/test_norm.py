"""The canonical norm against Python integers and rationals, and its independence of order."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from dsv4core.numerics.norm import inverse_rms, rms_norm

F32 = np.float32


def nearest(value: Fraction) -> np.float32:
    """Nearest float32 of a non-negative rational, a tie to the even one."""
    if value == 0:
        return F32(0)
    e = value.numerator.bit_length() - value.denominator.bit_length()
    if value < Fraction(2) ** e:
        e -= 1
    step = max(e - 23, -149)
    with np.errstate(over="ignore"):
        return F32(math.ldexp(round(value / Fraction(2) ** step), step))


def root(value: Fraction) -> np.float32:
    """Nearest float32 of a square root: 64 more bits than needed, with a sticky bit for what is cut off."""
    shift = 200
    scaled = value * 4**shift
    whole = math.isqrt(scaled.numerator // scaled.denominator)
    inexact = Fraction(whole) ** 2 != scaled
    return nearest(Fraction(2 * whole + int(inexact), 2) / 2**shift)


def by_hand(y: np.ndarray, eps: float) -> np.float32:
    """CA1 rule 3 in rationals; every float32 rounding is a call of `nearest`."""
    amax = max(abs(float(v)) for v in y)
    field = max(int(F32(amax).view(np.uint32)) >> 23, 30)
    k = Fraction(2) ** (20 - (field - 127))
    total = sum(round(Fraction(float(v)) * k) ** 2 for v in y)
    once = nearest(Fraction(float(nearest(Fraction(total)))) / k)
    twice = nearest(Fraction(float(once)) / k)
    mean = nearest(Fraction(float(twice)) / len(y))
    shifted = nearest(Fraction(float(mean)) + Fraction(float(F32(eps))))
    return nearest(1 / Fraction(float(root(Fraction(float(shifted))))))


def rows(n: int) -> list[np.ndarray]:
    rng = np.random.default_rng(n)
    y = [(rng.standard_normal(n) * 2.0**e).astype(F32) for e in (0, 0, 0, -60, -5, 3, 40)]
    spread = (rng.standard_normal(n) * np.exp2(rng.integers(-30, 3, n))).astype(F32)
    half = (rng.integers(-4, 5, n) + 0.5).astype(F32) * F32(2.0**-20)  # ties of the integer grid
    half[0] = 1.5
    lone = np.zeros(n, F32)
    lone[n // 2] = F32(-3e-39)
    return [*y, spread, half, lone, np.zeros(n, F32), np.full(n, F32(1e-30)), np.full(n, F32(1e-45))]


@pytest.mark.parametrize("n", [24, 128, 512, 1024, 1536])
@pytest.mark.parametrize("eps", [1e-6, 1e-20])
def test_against_rationals(n: int, eps: float) -> None:
    for y in rows(n):
        got = inverse_rms(torch.from_numpy(y), eps).numpy()
        assert got.shape == (1,) and got[0].view(np.uint32) == by_hand(y, eps).view(np.uint32), (n, y[:4])


def test_wide_rows_leave_the_exact_doubles() -> None:
    for n in (2048, 2049, 7168):
        y = np.random.default_rng(n).uniform(1.9, 1.99, n).astype(F32)
        assert inverse_rms(torch.from_numpy(y), 1e-6).numpy()[0] == by_hand(y, 1e-6)


@pytest.mark.parametrize("n", [128, 512, 1536])
def test_order_of_channels_does_not_matter(n: int) -> None:
    y = torch.from_numpy(np.stack(rows(n)))
    inverse = inverse_rms(y, 1e-6)
    generator = torch.Generator().manual_seed(n)
    for _ in range(5):
        shuffled = y[:, torch.randperm(n, generator=generator)]
        assert torch.equal(inverse_rms(shuffled, 1e-6), inverse)
    naive = [y.square().mean(1), y.flip(1).cumsum(1).square().mean(1)]
    assert not torch.equal(naive[0], naive[1])


def test_the_square_root_is_correctly_rounded() -> None:
    # A row of one repeated value v has mean square v^2 up to the grid: many roots, cheap rationals.
    v = np.random.default_rng(3).uniform(0.5, 2, 400).astype(F32)
    got = inverse_rms(torch.from_numpy(np.repeat(v[:, None], 8, 1)), 1e-6).numpy()[:, 0]
    assert (got == np.array([by_hand(np.full(8, x), 1e-6) for x in v])).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_is_widened_and_multiplied_last(dtype: torch.dtype) -> None:
    y = torch.from_numpy(np.stack(rows(512)[:6]))
    weight = torch.from_numpy(np.random.default_rng(1).standard_normal(512).astype(F32)).to(dtype)
    inverse = np.array([by_hand(row, 1e-6) for row in y.numpy()])[:, None]
    plain = y.numpy() * inverse
    assert (rms_norm(y, None, 1e-6).numpy() == plain).all()
    assert (rms_norm(y, weight, 1e-6).numpy() == plain * weight.float().numpy()).all()
    assert rms_norm(y[:0], weight, 1e-6).shape == (0, 512)
    for i in range(len(y)):
        assert torch.equal(rms_norm(y[i : i + 1], weight, 1e-6)[0], rms_norm(y, weight, 1e-6)[i])
