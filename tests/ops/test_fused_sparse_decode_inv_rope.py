"""Attention turned back and rounded once, against float64: bf16, and codes with both sorts of scales."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from attention_world import AttentionWorld
from op_reference import MAIN, angles, array, e4m3_values

from dsv4core.errors import OpArgumentError
from dsv4core.ops import OPS

TABLE = angles(50)
FORMATS = ("none", "f32", "ue8m0x4")


class World(AttentionWorld):
    """The world of attention, at positions."""

    def __init__(self, rng, tokens: int, *args) -> None:
        super().__init__(rng, tokens, *args)
        self.positions = torch.from_numpy(rng.integers(0, 50, tokens))
        self.positions[0] = 0

    def arguments(self, **changed) -> dict:
        turned = {"positions": self.positions, "cos_sin": torch.from_numpy(TABLE), "groups": 2}
        return {"q": self.q, **self.lists(), **turned, "scale_format": "none", **changed}

    def call(self, ops, **changed) -> tuple[torch.Tensor, torch.Tensor | None]:
        return ops.fused_sparse_decode_inv_rope(**self.arguments(**changed))

    def expected(self) -> tuple[np.ndarray, np.ndarray]:
        """float64 outputs turned back by complex numbers, and the sizes of their bounds."""
        outputs, _, sizes = zip(*self.attended(), strict=True)
        for t, o in enumerate(outputs):
            cos, sin = np.split(TABLE[int(self.positions[t])].astype(np.float64), 2)
            pairs = (o[:, 448::2] + 1j * o[:, 449::2]) * (cos - 1j * sin)
            o[:, 448::2], o[:, 449::2] = pairs.real, pairs.imag
        return np.array(outputs), np.array(sizes)


def bounded(value: np.ndarray, half: np.ndarray | float, expected: tuple[np.ndarray, np.ndarray]) -> None:
    exact, size = expected
    over = np.maximum(np.abs(value.astype(np.float64) - exact) - half, 0)
    assert (np.linalg.norm(over, axis=-1) <= 4e-3 * size).all()


def decoded(codes: torch.Tensor, scales: torch.Tensor, heads: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and half steps. Shapes: -> [T, H, 512] twice"""
    if scales.dtype == torch.int32:
        scales = torch.from_numpy(
            np.ldexp(1.0, scales.contiguous().view(torch.uint8).numpy().astype(int) - 127)
        )
    assert (torch.frexp(scales).mantissa == 0.5).all()
    factor = scales.double().numpy().reshape(codes.shape[0], heads, 4, 1)
    grid = e4m3_values(array(codes)).reshape(codes.shape[0], heads, 4, 128).astype(np.float64)
    full = np.abs(grid).max(-1, keepdims=True) >= 224  # a scale is no larger than its block needs
    assert (full | (factor == 2.0**-42)).all()
    step = np.exp2(np.floor(np.log2(np.maximum(np.abs(grid), 2.0**-6))) - 4)
    return tuple((x * factor).reshape(codes.shape[0], heads, 512) for x in (grid, step))


@pytest.mark.parametrize("scale_format", FORMATS)
@pytest.mark.parametrize(
    ("layout", "extra"),
    [*itertools.product(MAIN[:2], MAIN[:2]), ("f32_row", "f32_row"), ("fp8_ds_mla", None)],
)
def test_bound(ops, rng, layout: str, extra: str | None, scale_format: str) -> None:
    world = World(rng, 6, 4, layout, extra)
    world.slots[0][1, :7] = -1  # leading holes
    world.slots[0][2, 3:20:2] = -9
    world.slots[1][3] = world.slots[1][3, 0]  # duplicates count
    world.slots[1][4] = -(2**31)
    world.lens[0][5] = 0
    o, scales = world.call(ops, scale_format=scale_format)
    if scale_format == "none":
        assert o.dtype == world.q.dtype and o.shape == (6, 4, 512) and scales is None
        bounded(array(o), 0.0, world.expected())
        return
    assert o.dtype == torch.float8_e4m3fn and o.shape == (6, 2, 1024)
    assert scales.shape == ((6, 2, 8) if scale_format == "f32" else (6, 2, 2))
    bounded(*decoded(o, scales, 4), world.expected())


def test_it_rounds_once_where_two_ops_round_twice(ops, rng) -> None:
    world = World(rng, 40, 4)
    once, twice = world.call(ops)[0], torch.zeros_like(world.q)
    given = world.arguments()
    decode = {name: given[name] for name in OPS["sparse_decode"].signature.parameters if name != "out"}
    OPS["sparse_decode"].body(**decode, out=twice)  # a kernel's sums would differ before any rounding
    turned = ops.inverse_rope(twice, world.positions, given["cos_sin"])
    assert torch.equal(once[..., :448], turned[..., :448])  # what does not turn is rounded once either way
    exact, _ = world.expected()
    errors = [np.linalg.norm(array(o)[..., 448:] - exact[..., 448:]) for o in (once, turned)]
    assert not torch.equal(once, turned) and errors[0] < errors[1]
    codes, _ = world.call(ops, scale_format="f32")
    quantised, _ = ops.fused_inv_rope_fp8_quant(
        twice, world.positions, given["cos_sin"], groups=2, scale_format="f32"
    )
    assert not torch.equal(codes.view(torch.uint8), quantised.view(torch.uint8))
    assert torch.equal(world.call(ops, scale_format="ue8m0x4")[0].view(torch.uint8), codes.view(torch.uint8))


@pytest.mark.parametrize("scale_format", FORMATS)
def test_rows_and_heads_without_weight(ops, rng, scale_format: str) -> None:
    world = World(rng, 3, 4)
    world.lens[0][0] = world.lens[1][0] = 0
    world.slots[0][1], world.slots[1][1] = -1, -1
    world.sink = torch.tensor([-torch.inf, torch.inf, 1e30, 0.5])
    o, scales = world.call(ops, scale_format=scale_format)
    value = o.float().reshape(3, 4, 512)
    assert not value[:2].any() and not value[2, 1:3].any() and value[2, 0].any() and value[2, 3].any()
    if scale_format == "f32":
        assert (scales.reshape(3, 4, 4)[:2] == 2.0**-42).all()  # the floor 1e-10


def test_groups_are_neighbouring_heads(ops, rng) -> None:
    world = World(rng, 2, 8)
    whole, scales = world.call(ops, groups=1, scale_format="f32")
    for groups in (2, 4, 8):
        codes, parts = world.call(ops, groups=groups, scale_format="f32")
        assert codes.shape == (2, groups, 4096 // groups)
        assert torch.equal(codes.view(torch.uint8).flatten(), whole.view(torch.uint8).flatten())
        assert torch.equal(parts.flatten(), scales.flatten())


def test_no_tokens(ops, rng) -> None:
    world = World(rng, 1, 4)
    world.q, world.positions = world.q[:0], world.positions[:0]
    world.slots, world.lens = [s[:0] for s in world.slots], [n[:0] for n in world.lens]
    assert world.call(ops)[0].shape == (0, 4, 512)
    codes, scales = world.call(ops, scale_format="ue8m0x4")
    assert codes.shape == (0, 2, 1024) and scales.shape == (0, 2, 2)


@pytest.mark.parametrize(
    ("changed", "argument", "expected"),
    [
        ({"groups": 3}, "groups", "a divisor of 4 heads"),
        ({"groups": 8}, "groups", "a divisor of 4 heads"),
        ({"groups": 0}, "groups", ">= 1"),
        ({"scale_format": "bf16"}, "scale_format", "'none' or 'f32' or 'ue8m0x4'"),
        ({"extra_slots": None}, "extra_slots", "a tensor, since there is an extra_cache"),
        ({"extra_lens": None}, "extra_lens", "a tensor, since there is an extra_cache"),
        ({"positions": torch.tensor([0, 50])}, "positions", ""),
        ({"positions": torch.tensor([-1, 3])}, "positions", ""),
        ({"attn_sink": torch.tensor([0, 0, torch.nan, 0])}, "attn_sink", "numbers, -inf or +inf"),
        ({"swa_slots": torch.full((2, 40), 192, dtype=torch.int32)}, "swa_slots", ""),
        ({"extra_lens": torch.tensor([25, 1], dtype=torch.int32)}, "extra_lens", ""),
    ],
)
def test_refused(ops, rng, changed: dict, argument: str, expected: str) -> None:
    with pytest.raises(OpArgumentError) as caught:
        World(rng, 2, 4).call(ops, **changed)
    assert (caught.value.op, caught.value.argument) == ("fused_sparse_decode_inv_rope", argument)
    assert expected in caught.value.expected
