"""Attention over a gathered workspace against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from op_reference import F32, array, attention, check_attention, tensor_bf16

from dsv4core.errors import OpArgumentError

SCALE = 512**-0.5


class Prefill:
    """Queries over a workspace; lists are edited before `call`."""

    def __init__(
        self, rng, tokens: int, heads: int, keys: int = 90, width: int = 50, dtype=torch.bfloat16
    ) -> None:
        self.q = tensor_bf16(rng.standard_normal((tokens, heads, 512)) * 2).to(dtype)
        self.kv = tensor_bf16(rng.standard_normal((keys, 512)) * np.exp2(rng.integers(-2, 2, (keys, 1)))).to(
            dtype
        )
        self.indices = torch.from_numpy(rng.integers(0, keys, (tokens, width)).astype(np.int32))
        self.lens = torch.from_numpy(rng.integers(1, width + 1, tokens).astype(np.int32))
        self.sink = torch.from_numpy(rng.standard_normal(heads).astype(F32))

    def call(self, ops) -> tuple[torch.Tensor, torch.Tensor]:
        out = torch.full(self.q.shape, 9.0, dtype=self.q.dtype)
        return out, ops.sparse_prefill(self.q, self.kv, self.indices, self.lens, self.sink, out, scale=SCALE)

    def expected(self):
        kv = array(self.kv)
        lists = [
            [int(i) for i in row[: int(n)] if 0 <= i < len(kv)]
            for row, n in zip(self.indices, self.lens, strict=True)
        ]
        return [attention(array(self.q[t]), kv[i], self.sink.numpy(), SCALE) for t, i in enumerate(lists)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bound(ops, rng, dtype: torch.dtype) -> None:
    world = Prefill(rng, 9, 5, dtype=dtype)
    world.indices[1, :9], world.indices[2, ::2], world.indices[3] = -1, -77, world.indices[3, 0]
    world.indices[4], world.lens[5] = -1, 0
    out, lse = world.call(ops)
    check_attention(out, lse, world.expected())
    assert not out[4:6].any() and lse[4:6].isposinf().all()


def test_peaked_and_flat_rows(ops, rng) -> None:
    world = Prefill(rng, 3, 4)
    world.q[0] *= 30
    world.q[1] *= 0
    world.q[2, 0] = world.kv[int(world.indices[2, 0])] * 8
    check_attention(*world.call(ops), world.expected())


def test_cancelling_values(ops, rng) -> None:
    world = Prefill(rng, 2, 3, keys=40, width=40)
    world.kv[20:] = -world.kv[:20]
    world.q *= 0.01
    world.indices[:] = torch.arange(40, dtype=torch.int32)
    world.lens[:] = 40
    check_attention(*world.call(ops), world.expected())


def test_sinks(ops, rng) -> None:
    world = Prefill(rng, 3, 6)
    _, lse = world.call(ops)
    world.sink = torch.tensor([-torch.inf, torch.inf, 1e38, -1e38, 50.0, 0.0])
    out, again = world.call(ops)
    assert torch.equal(lse, again) and not out[:, 1:3].any()
    check_attention(out, again, world.expected())


def test_garbage_outside_the_lists(ops, rng) -> None:
    world = Prefill(rng, 6, 3)
    used = {int(i) for row, n in zip(world.indices, world.lens, strict=True) for i in row[: int(n)]}
    expected = world.expected()
    for row in set(range(90)) - used:
        world.kv[row] = torch.nan
    for t in range(6):
        world.indices[t, int(world.lens[t]) :] = 2**31 - 1
    world.kv = torch.cat((world.kv, torch.full((3, 512), torch.inf, dtype=torch.bfloat16)))
    check_attention(*world.call(ops), expected)


def test_tokens_alone_and_views(ops, rng) -> None:
    world = Prefill(rng, 11, 6)
    out, lse = world.call(ops)
    q, indices, lens = world.q, world.indices, world.lens
    for t in range(11):
        world.q, world.indices, world.lens = q[t : t + 1], indices[t : t + 1], lens[t : t + 1]
        alone = world.call(ops)
        assert torch.equal(alone[0][0], out[t]) and torch.equal(alone[1][0], lse[t])
    world.q = torch.cat((q, q), 1)[:, 6:]
    world.indices, world.lens = indices.t().contiguous().t(), lens.repeat_interleave(2)[::2]
    world.kv = torch.cat((world.kv, world.kv), 1)[:, 512:]
    got = world.call(ops)
    assert torch.equal(got[0], out) and torch.equal(got[1], lse)


def test_no_tokens_no_rows(ops, rng) -> None:
    world = Prefill(rng, 2, 3)
    world.kv, world.indices = world.kv[:0], torch.full_like(world.indices, -1)
    out, lse = world.call(ops)
    assert not out.any() and lse.isposinf().all()
    world.q, world.indices, world.lens = world.q[:0], world.indices[:0], world.lens[:0]
    assert world.call(ops)[1].shape == (0, 3)


def test_out_of_range(ops, rng, monkeypatch) -> None:
    world = Prefill(rng, 2, 3)
    world.lens[:] = 50
    world.indices[1, 3] = 90
    with pytest.raises(OpArgumentError, match="indices"):
        world.call(ops)
    monkeypatch.setenv("DSV4CORE_CHECK", "0")
    check_attention(*world.call(ops), world.expected())
    monkeypatch.delenv("DSV4CORE_CHECK")
    world.indices[1, 3], world.lens[0] = 0, 51
    with pytest.raises(OpArgumentError, match="lens"):
        world.call(ops)
