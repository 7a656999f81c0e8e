"""Rotation of interleaved pairs, against one scalar at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsv4core.numerics.rope import rotate, rotate_tail

F32 = np.float32


def scalars(x: np.ndarray, cos_sin: np.ndarray, inverse: bool) -> np.ndarray:
    out = np.empty_like(x)
    for i in range(32):
        c, s = F32(cos_sin[i]), F32(cos_sin[32 + i])
        s = F32(-s) if inverse else s
        e, o = F32(x[2 * i]), F32(x[2 * i + 1])
        ec, os, es, oc = F32(e * c), F32(o * s), F32(e * s), F32(o * c)
        out[2 * i], out[2 * i + 1] = F32(ec - os), F32(es + oc)
    return out


def data(rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rows)
    a = rng.uniform(-10, 10, (rows, 32))
    return rng.standard_normal((rows, 64)).astype(F32), np.concatenate((np.cos(a), np.sin(a)), 1).astype(F32)


@pytest.mark.parametrize("inverse", [False, True])
def test_bits(inverse: bool) -> None:
    x, table = data(200)
    got = rotate(torch.from_numpy(x), torch.from_numpy(table), inverse=inverse).numpy()
    expected = np.stack([scalars(a, b, inverse) for a, b in zip(x, table, strict=True)])
    assert (got.view(np.uint32) == expected.view(np.uint32)).all()


def test_the_data_tells_contraction_apart() -> None:
    x, table = data(200)
    e, o = x[:, 0::2].astype(np.float64), x[:, 1::2].astype(np.float64)
    contracted = (e * table[:, :32] - (o * table[:, 32:]).astype(F32)).astype(F32)
    got = rotate(torch.from_numpy(x), torch.from_numpy(table)).numpy()[:, 0::2]
    assert (got != contracted).any()


def test_only_the_tail_moves_and_there_is_a_way_back() -> None:
    x, table = data(16)
    wide = torch.from_numpy(np.concatenate((np.tile(x, 7), x), 1))
    before = wide.clone()
    turned = rotate_tail(wide, torch.from_numpy(table))
    assert torch.equal(wide, before) and torch.equal(turned[:, :448], wide[:, :448])
    assert torch.equal(turned[:, 448:], rotate(torch.from_numpy(x), torch.from_numpy(table)))
    back = rotate_tail(turned, torch.from_numpy(table), inverse=True)
    torch.testing.assert_close(back, wide, rtol=0, atol=1e-6)
    identity = torch.cat((torch.ones(1, 32), torch.zeros(1, 32)), 1)
    assert torch.equal(rotate_tail(wide, identity), wide)


def test_tables_broadcast_over_heads() -> None:
    x, table = data(12)
    heads = torch.from_numpy(x).view(4, 3, 64)
    angles = torch.from_numpy(table[:4]).unsqueeze(1)
    got = rotate_tail(heads, angles)
    for t in range(4):
        for h in range(3):
            assert torch.equal(got[t, h], rotate(heads[t, h], angles[t, 0]))
    assert rotate(heads[:0], angles[:0]).shape == (0, 3, 64)
