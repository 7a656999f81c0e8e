"""Pooling of a window: eight segments, each in order, then the eight in order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsv4core.numerics.exp import exp_nonpositive
from dsv4core.numerics.pool import pool

F32 = np.float32


def scalars(kv: np.ndarray, score: np.ndarray, valid: np.ndarray, segments: int = 8) -> np.ndarray:
    """One entry, one channel and one row at a time."""
    w, d = kv.shape
    out = np.empty(d, F32)
    for channel in range(d):
        live = [j for j in range(w) if valid[j]]
        m = max(score[j, channel] for j in live)
        shifted = torch.tensor([float(F32(score[j, channel] - m)) for j in live])
        e = dict(zip(live, exp_nonpositive(shifted).numpy(), strict=True))
        sums = []
        for segment in range(segments):
            s, a = F32(0), F32(0)
            for j in range(segment * w // segments, (segment + 1) * w // segments):
                if valid[j]:
                    s = F32(s + e[j])
                    a = F32(a + F32(e[j] * kv[j, channel]))
            sums.append((s, a))
        s, a = sums[0]
        for more_s, more_a in sums[1:]:
            s, a = F32(s + more_s), F32(a + more_a)
        out[channel] = F32(a / s)
    return out


def data(n: int, w: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(w)
    return rng.standard_normal((n, w, d)).astype(F32), (rng.standard_normal((n, w, d)) * 3).astype(F32)


def call(kv: np.ndarray, score: np.ndarray, valid: np.ndarray) -> np.ndarray:
    return pool(torch.tensor(kv), torch.tensor(score), torch.from_numpy(valid)).numpy()


@pytest.mark.parametrize("w", [8, 16, 128])
def test_bits(w: int) -> None:
    kv, score = data(4, w, 16)
    valid = np.ones((4, w), bool)
    valid[1, : w // 2] = valid[2, : w - 1] = False
    kv[1, : w // 2], score[1, : w // 2] = np.nan, np.nan  # what is not valid may hold anything
    kv[2, : w - 1], score[2, : w - 1] = np.inf, 1e30
    score[3, 1] = -1e30  # a weight of exactly zero
    got = call(kv, score, valid)
    for i in range(4):
        expected = scalars(kv[i], score[i], valid[i])
        assert (got[i].view(np.uint32) == expected.view(np.uint32)).all(), i
    assert (got[2] == kv[2, -1]).all()


def test_segments_are_not_plain_order_for_128() -> None:
    kv, score = data(2, 128, 64)
    valid = np.ones((2, 128), bool)
    got = call(kv, score, valid)
    plain = np.stack([scalars(kv[i], score[i], valid[i], segments=1) for i in range(2)])
    assert (got != plain).any() and np.allclose(got, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("w", [8, 128])
def test_rows_alone_and_in_a_batch(w: int) -> None:
    kv, score = data(33, w, 24)
    valid = np.ones((33, w), bool)
    valid[5, :4] = False
    whole = call(kv, score, valid)
    for i in range(33):
        assert (call(kv[i : i + 1], score[i : i + 1], valid[i : i + 1])[0] == whole[i]).all()
    assert call(kv[:0], score[:0], valid[:0]).shape == (0, 24)


def test_equal_scores_give_the_mean_and_huge_ones_do_not_overflow() -> None:
    kv, _ = data(1, 8, 8)
    valid = np.ones((1, 8), bool)
    for level in (0.0, 3e38, -3e38):
        got = call(kv, np.full((1, 8, 8), level, F32), valid)
        assert np.allclose(got, kv.mean(1), atol=1e-6)
