"""Rotation back, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from op_reference import F32, angles, array, bf16, rope, same, tensor_bf16

from dsv4core.errors import OpArgumentError

TABLE = angles(50)


def call(ops, o: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return ops.inverse_rope(o, positions, torch.from_numpy(TABLE))


def test_bits(ops, rng) -> None:
    o = tensor_bf16(rng.standard_normal((300, 3, 512)) * np.exp2(rng.integers(-20, 10, (300, 3, 1))))
    positions = torch.from_numpy(rng.integers(0, 50, 300))
    before = o.clone()
    got = call(ops, o, positions)
    assert got.dtype == torch.bfloat16 and got.is_contiguous() and torch.equal(o, before)
    same(got, bf16(rope(array(o), TABLE[positions.numpy()][:, None], inverse=True)))
    assert torch.equal(got[..., :448], o[..., :448])
    for t in (0, 7, 299):
        assert torch.equal(call(ops, o[t : t + 1], positions[t : t + 1])[0], got[t])


def test_signed_zeros_and_f32(ops, rng) -> None:
    o = torch.zeros(2, 1, 512, dtype=torch.bfloat16)
    o[0] = -0.0
    same(call(ops, o, torch.tensor([3, 4])), bf16(rope(array(o), TABLE[3:5, None], inverse=True)))
    o = torch.from_numpy(rng.standard_normal((4, 2, 512)).astype(F32))
    same(call(ops, o, torch.arange(4)), rope(o.numpy(), TABLE[:4, None], inverse=True))


def test_slices_no_tokens_refusals(ops, rng) -> None:
    wide = tensor_bf16(rng.standard_normal((4, 5, 600)))
    view = wide[:, 1:3, 44:556]
    positions = torch.arange(8)[::2]
    assert torch.equal(call(ops, view, positions), call(ops, view.clone(), positions.clone()))
    assert call(ops, view[:0], positions[:0]).shape == (0, 2, 512)
    for bad in (50, -1):
        with pytest.raises(OpArgumentError, match="positions"):
            call(ops, view[:1], torch.tensor([bad]))
