"""Attention over pages against float64: lists, lengths, sinks, holes, garbage."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from attention_world import AttentionWorld
from op_reference import MAIN, check_attention

from dsv4core.errors import OpArgumentError


class Decode(AttentionWorld):
    """The world of `sparse_decode`."""

    def call(self, ops) -> tuple[torch.Tensor, torch.Tensor]:
        out = torch.full(self.q.shape, 9.0, dtype=self.q.dtype)
        lse = ops.sparse_decode(self.q, out=out, **self.lists())
        assert lse.dtype == torch.float32 and lse.shape == self.q.shape[:2]
        return out, lse


@pytest.mark.parametrize("place", [{}, {"lead": 33, "gap": 5}])
@pytest.mark.parametrize(
    ("layout", "extra"),
    [*itertools.product(MAIN[:2], MAIN[:2]), ("f32_row", "f32_row"), ("fp8_ds_mla", None)],
)
def test_bound(ops, rng, layout: str, extra: str | None, place: dict[str, int]) -> None:
    world = Decode(rng, 6, 5, layout, extra, **place)
    world.slots[0][1, :7] = -1  # leading holes
    world.slots[0][2, 3:20:2] = -9
    world.slots[1][3] = world.slots[1][3, 0]  # duplicates count
    world.slots[1][4] = -(2**31)
    world.lens[0][5] = 0
    check_attention(*world.call(ops), world.attended())


def test_f32_is_far_below_the_bf16_bound(ops, rng) -> None:
    world = Decode(rng, 4, 3, "f32_row", "f32_row")
    out, _ = world.call(ops)
    for t, (o, _, size) in enumerate(world.attended()):
        assert (np.linalg.norm(out[t].numpy() - o, axis=1) <= 2e-6 * size).all()


def test_flash_shape(ops, rng) -> None:
    world = Decode(rng, 2, 64)
    world.slots = [
        torch.from_numpy(rng.integers(0, n, (2, k)).astype(np.int32)) for n, k in ((192, 128), (60, 512))
    ]
    world.lens = [torch.tensor([128, 77], dtype=torch.int32), torch.tensor([512, 300], dtype=torch.int32)]
    check_attention(*world.call(ops), world.attended())


def test_empty_rows(ops, rng) -> None:
    world = Decode(rng, 4, 3)
    world.lens[0][0] = world.lens[1][0] = 0
    world.slots[0][1], world.slots[1][1] = -1, -1
    world.lens[0][2], world.slots[1][2] = 0, -3
    world.sink = torch.tensor([0.5, -torch.inf, torch.inf])
    out, lse = world.call(ops)
    assert not out[:3].any() and lse[:3].isposinf().all()
    check_attention(out, lse, world.attended())


def test_sinks(ops, rng) -> None:
    world = Decode(rng, 3, 8)
    plain, lse = world.call(ops)
    near = lse[0].clone()
    world.sink = torch.tensor([-torch.inf, torch.inf, 1e30, -1e30, float(near[4]), 60.0, 0.0, -0.0])
    out, again = world.call(ops)
    assert torch.equal(lse, again)  # the sum never holds the sink
    assert not out[:, 1].any() and not out[:, 2].any()
    check_attention(out, again, world.attended())
    world.sink = torch.full((8,), -torch.inf)
    without, _ = world.call(ops)
    assert torch.equal(out[:, 0], without[:, 0]) and torch.equal(out[:, 3], without[:, 3])
    half = without[0, 4].float() / 2
    assert (out[0, 4].float() - half).norm() <= 4e-3 * half.norm() + 1e-6
    assert not torch.equal(plain, out)


def test_a_zero_page_is_a_key_of_zeros(ops, rng) -> None:
    world = Decode(rng, 1, 2, extra=None)
    world.caches[0].store.zero_()
    world.lens[0][:] = 5
    out, lse = world.call(ops)
    assert not out.any() and torch.allclose(lse, torch.tensor(5.0).log())


def test_garbage_outside_the_list(ops, rng) -> None:
    world = Decode(rng, 5, 3)
    for pages, slots in zip(world.caches, world.slots, strict=True):
        slots[:] = torch.where(slots % 2 == 0, slots, slots - 1)  # even rows only
        odd = torch.from_numpy(
            np.concatenate(
                [np.arange(s.start, s.stop) for slot in range(1, 60, 2) for s in pages.spans(slot)]
            )
        )
        clean = pages.store.clone()
        pages.store[odd] = 0xFF  # NaN in e4m3, bf16 and as a scale
        pages.expected = clean.numpy()
    for slots, lens in zip(world.slots, world.lens, strict=True):
        for t in range(5):
            slots[t, int(lens[t]) :] = 1
    out, lse = world.call(ops)
    check_attention(out, lse, world.attended())
    for slots, lens in zip(world.slots, world.lens, strict=True):
        for t in range(5):
            slots[t, int(lens[t]) :] = 2**31 - 1  # behind the length nothing is read, so nothing is checked
    again, _ = world.call(ops)
    assert torch.equal(out, again)


def test_tokens_and_heads_alone(ops, rng) -> None:
    world = Decode(rng, 9, 6)
    out, lse = world.call(ops)
    q, slots, lens = world.q, world.slots, world.lens
    for t in range(9):
        world.q = q[t : t + 1]
        world.slots, world.lens = [s[t : t + 1] for s in slots], [n[t : t + 1] for n in lens]
        alone, alone_lse = world.call(ops)
        assert torch.equal(alone[0], out[t]) and torch.equal(alone_lse[0], lse[t])


def test_padded_heads_leave_live_ones_alone(ops, rng) -> None:
    world = Decode(rng, 3, 4)
    out, lse = world.call(ops)
    world.q = torch.cat((world.q, torch.zeros_like(world.q)), 1)
    world.sink = torch.cat((world.sink, torch.full((4,), -torch.inf)))
    padded, padded_lse = world.call(ops)
    check_attention(padded, padded_lse, world.attended())
    assert (padded[:, :4].float() - out.float()).abs().max() <= 2**-7 * out.float().abs().max()
    assert torch.allclose(padded_lse[:, :4], lse, rtol=1e-6, atol=1e-5)


def test_strided_views(ops, rng) -> None:
    world = Decode(rng, 4, 3)
    expected = world.call(ops)
    world.q = torch.cat((world.q, world.q), 2)[..., 512:]
    world.slots = [s.t().contiguous().t() for s in world.slots]
    world.lens = [n.repeat_interleave(2)[::2] for n in world.lens]
    got = world.call(ops)
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


def test_no_tokens(ops, rng) -> None:
    world = Decode(rng, 1, 3)
    world.q, world.slots, world.lens = world.q[:0], [s[:0] for s in world.slots], [n[:0] for n in world.lens]
    out, lse = world.call(ops)
    assert out.shape == (0, 3, 512) and lse.shape == (0, 3)


def test_out_of_range(ops, rng, monkeypatch) -> None:
    world = Decode(rng, 2, 3)
    world.lens[0][:], world.lens[1][:] = 40, 24
    clean = [s.clone() for s in world.slots]
    for cache, slot, argument in ((0, 192, "swa_slots"), (1, 60, "extra_slots"), (0, 2**31 - 1, "swa_slots")):
        world.slots = [s.clone() for s in clean]
        world.slots[cache][1, 2] = slot
        with pytest.raises(OpArgumentError) as caught:
            world.call(ops)
        assert caught.value.argument == argument
    for cache, argument in ((0, "swa_lens"), (1, "extra_lens")):
        for n in (-1, 41):
            lens = [n.clone() for n in world.lens]
            world.slots, world.lens[cache] = clean, lens[cache].clone().fill_(n)
            with pytest.raises(OpArgumentError) as caught:
                world.call(ops)
            assert caught.value.argument == argument
            world.lens = lens
    world.sink[1] = torch.nan
    with pytest.raises(OpArgumentError, match="attn_sink"):
        world.call(ops)
    world.sink[1] = 0.25
    monkeypatch.setenv("DSV4CORE_CHECK", "0")
    world.slots = [s.clone() for s in clean]
    world.slots[0][1, 2], world.slots[1][0, :4] = 192, 2**31 - 1
    out, lse = world.call(ops)
    world.slots[0][1, 2], world.slots[1][0, :4] = -1, -1
    check_attention(out, lse, world.attended())
