"""RMS norm of the two projections, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from op_reference import array, bf16, inverse_rms, rms_norm, same, tensor_bf16

from dsv4core.errors import OpArgumentError


def joined(rng: np.random.Generator, tokens: int, q: int) -> torch.Tensor:
    x = rng.standard_normal((tokens, q + 512 + 3)) * np.exp2(rng.integers(-12, 5, (tokens, 1)))
    return tensor_bf16(x)


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("q", [24, 1024, 1536])
def test_bits_on_column_slices(ops, rng, q: int, weights: torch.dtype) -> None:
    x = joined(rng, 37, q)
    x[3] = 0
    x[4, 1:] = 0
    x[5] = x[5] * 2.0**100
    x[6] = x[6] * 2.0**-100
    w_q, w_kv = (torch.from_numpy(rng.standard_normal(n).astype(np.float32)).to(weights) for n in (q, 512))
    got = ops.fused_q_kv_rmsnorm(x[:, :q], x[:, q : q + 512], w_q, w_kv, eps=1e-6)
    for y, part, w in zip(got, (x[:, :q], x[:, q : q + 512]), (w_q, w_kv), strict=True):
        assert y.dtype == torch.bfloat16 and y.is_contiguous()
        same(y, bf16(rms_norm(array(part), array(w), 1e-6)))
    alone = array(x[7, :q])
    assert (array(got[0][7]) == bf16(alone * inverse_rms(alone, 1e-6) * array(w_q))).all()


def test_not_rounded_before_the_weight(ops, rng) -> None:
    x, ones = joined(rng, 16, 512)[:, :512], torch.ones(512)
    w = torch.full((512,), 1.7)
    got, normed = ops.fused_q_kv_rmsnorm(x, x, w, ones, eps=1e-6)
    assert not torch.equal(got, (normed.float() * 1.7).to(torch.bfloat16))


def test_f32_in_profile_math(ops, rng) -> None:
    x = torch.from_numpy(rng.standard_normal((5, 600)).astype(np.float32))
    w_q, w_kv = torch.from_numpy(x.numpy()[0, :88].copy()), torch.from_numpy(x.numpy()[1, :512].copy())
    got = ops.fused_q_kv_rmsnorm(x[:, :88], x[:, 88:], w_q, w_kv, eps=1e-6)
    same(got[0], rms_norm(x.numpy()[:, :88], w_q.numpy(), 1e-6))
    same(got[1], rms_norm(x.numpy()[:, 88:], w_kv.numpy(), 1e-6))


def test_no_tokens_and_wrong_shapes(ops) -> None:
    x = torch.zeros(0, 600, dtype=torch.bfloat16)
    a, b = ops.fused_q_kv_rmsnorm(x[:, :88], x[:, 88:], torch.ones(88), torch.ones(512), eps=1e-6)
    assert a.shape == (0, 88) and b.shape == (0, 512)
    with pytest.raises(OpArgumentError, match="q_weight"):
        ops.fused_q_kv_rmsnorm(x[:, :88], x[:, 88:], torch.ones(87), torch.ones(512), eps=1e-6)
    with pytest.raises(OpArgumentError, match=r"stride\(-1\) = 1"):
        wide = torch.zeros(2, 176, dtype=torch.bfloat16)[:, ::2]
        ops.fused_q_kv_rmsnorm(
            wide, torch.zeros(2, 512, dtype=torch.bfloat16), torch.ones(88), torch.ones(512), eps=1e-6
        )
