"""The canonical exponential: its bits, its error and its ends."""

from __future__ import annotations

import numpy as np
import torch

from dsv4core.numerics.exp import exp_nonpositive

F32 = np.float32
BOUND = 8.1e-8


def stepwise(x: np.ndarray) -> np.ndarray:
    k = np.floor(x * F32(1.44269504) + F32(0.5))
    t = x - k * F32(0.693359375)
    t = t - k * F32(-2.12194440e-4)
    p = np.full_like(t, F32(1.9875691500e-4))
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * t
        p = p + F32(c)
    y = p * (t * t)
    y = y + t
    y = y + F32(1)
    return np.ldexp(y, k.astype(np.int32))


def dense() -> np.ndarray:
    """Every magnitude of float: even in value, even in bit patterns, and around the seams."""
    patterns = np.linspace(0, int(F32(87).view(np.int32)), 1_000_000).astype(np.int32).view(F32)
    seams = (np.arange(-126, 1, dtype=np.float64)[:, None] * np.log(2) / 2).astype(F32).view(np.int32)
    near = (seams + np.arange(-8, 9, dtype=np.int32)).view(F32).ravel()
    x = np.concatenate((np.linspace(-87, 0, 1_000_000).astype(F32), -patterns, near))
    return x[(x >= -87) & (x <= 0)]


def test_bits_and_relative_error_over_a_dense_grid() -> None:
    x = dense()
    got = exp_nonpositive(torch.from_numpy(x)).numpy()
    assert (got.view(np.uint32) == stepwise(x).view(np.uint32)).all()
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(got / exact - 1)).max() <= BOUND
    assert got.max() <= 1


def test_ends() -> None:
    below = np.nextafter(F32(-87), F32(-100))
    x = torch.tensor([0.0, -0.0, -87.0, float(below), -88.0, -1e30, -torch.inf, -1e-45])
    got = exp_nonpositive(x)
    assert got[:2].tolist() == [1.0, 1.0] and got[7] == 1.0
    assert got[2] > 0 and abs(float(got[2]) / np.exp(-87.0) - 1) <= BOUND
    assert got[3:7].tolist() == [0.0] * 4 and not got[3:7].signbit().any()


def test_shape_does_not_matter() -> None:
    x = torch.from_numpy(dense()[::997].copy())
    whole = exp_nonpositive(x)
    for width in (1, 3, 17):
        assert torch.equal(torch.cat([exp_nonpositive(p.contiguous()) for p in x.split(width)]), whole)
    assert exp_nonpositive(torch.empty(0, 3)).shape == (0, 3)
