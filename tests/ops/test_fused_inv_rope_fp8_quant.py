"""Rotation back and e4m3 without a bf16 rounding in between, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from op_reference import F32, angles, array, bf16, blocks_e4m3, rope, tensor_bf16

from dsv4core.errors import OpArgumentError

TABLE = angles(50)


def call(ops, o, positions, groups: int, scale_format: str):
    return ops.fused_inv_rope_fp8_quant(
        o, positions, torch.from_numpy(TABLE), groups=groups, scale_format=scale_format
    )


@pytest.mark.parametrize(("heads", "groups"), [(4, 2), (8, 1), (6, 6)])
def test_bits_and_both_scale_formats(ops, rng, heads: int, groups: int) -> None:
    o = tensor_bf16(rng.standard_normal((150, heads, 512)) * np.exp2(rng.integers(-40, 10, (150, heads, 1))))
    o[0] = 0
    o[1, 0, :384], o[1, 0, 500] = 0, 1.0
    positions = torch.from_numpy(rng.integers(0, 50, 150))
    x = rope(array(o), TABLE[positions.numpy()][:, None], inverse=True)
    expected, e = blocks_e4m3(x.reshape(150, groups, -1), 128, floor=1e-10)
    codes, scales = call(ops, o, positions, groups, "f32")
    assert codes.dtype == torch.float8_e4m3fn and codes.shape == (150, groups, heads * 512 // groups)
    assert (array(codes) == expected).all()
    assert (scales.numpy() == np.ldexp(F32(1), e)).all()
    packed_codes, packed = call(ops, o, positions, groups, "ue8m0x4")
    assert (array(packed_codes) == expected).all() and packed.dtype == torch.int32
    byte = (e + 127).astype(np.int64)
    word = sum(byte[..., j::4] << (8 * j) for j in range(4))  # the first block is the lowest byte
    assert (packed.numpy().view(np.uint32) == word).all()
    assert byte.min() == 85  # the floor 1e-10
    for t in (0, 1, 149):
        alone = call(ops, o[t : t + 1], positions[t : t + 1], groups, "ue8m0x4")
        assert (array(alone[0][0]) == expected[t]).all() and torch.equal(alone[1][0], packed[t])
    rounded, _ = blocks_e4m3(bf16(x).reshape(150, groups, -1), 128, floor=1e-10)
    assert (rounded != expected).any()  # the data shows a rounding to bf16


def test_unrounded_amax_just_above_a_power(ops) -> None:
    # 448 times a cosine and sine chosen so that the rotated amax lies one ulp of fp32 above 448.
    o = torch.zeros(1, 1, 512, dtype=torch.bfloat16)
    o[0, 0, 448] = 448.0
    table = torch.cat((torch.full((1, 32), float(np.nextafter(F32(1), F32(2)))), torch.zeros(1, 32)), 1)
    codes, scales = ops.fused_inv_rope_fp8_quant(
        o, torch.zeros(1, dtype=torch.int64), table, groups=1, scale_format="f32"
    )
    assert scales[0, 0, 3] == 2.0 and codes.view(torch.uint8)[0, 0, 448] == 0x76
    table[:] = torch.cat((torch.ones(32), torch.zeros(32)))
    codes, scales = ops.fused_inv_rope_fp8_quant(
        o, torch.zeros(1, dtype=torch.int64), table, groups=1, scale_format="f32"
    )
    assert scales[0, 0, 3] == 1.0 and codes.view(torch.uint8)[0, 0, 448] == 0x7E


def test_slices_no_tokens_refusals(ops, rng) -> None:
    wide = tensor_bf16(rng.standard_normal((3, 6, 600)))
    view, positions = wide[:, 1:5, 44:556], torch.arange(6)[::2]
    for scale_format, shape in (("f32", (0, 2, 8)), ("ue8m0x4", (0, 2, 2))):
        a, b = (
            call(ops, view, positions, 2, scale_format),
            call(ops, view.clone(), positions.clone(), 2, scale_format),
        )
        assert (array(a[0]) == array(b[0])).all() and torch.equal(a[1], b[1])
        assert call(ops, view[:0], positions[:0], 2, scale_format)[1].shape == shape
    for groups, scale_format, p, argument in [
        (3, "f32", 0, "groups"), (0, "f32", 0, "groups"), (2, "bf16", 0, "scale_format"),
        (2, "f32", 50, "positions"),
    ]:  # fmt: skip
        with pytest.raises(OpArgumentError) as caught:
            call(ops, view[:1], torch.tensor([p]), groups, scale_format)
        assert caught.value.argument == argument
