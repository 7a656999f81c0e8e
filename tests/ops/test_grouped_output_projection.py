"""One matrix per group of heads, against float64 and row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from op_reference import F32, angles, array, bf16, e4m3_values, tensor_bf16

from dsv4core.errors import OpArgumentError

BF16 = torch.bfloat16


def call(ops, o, wo_a, groups: int, o_scales=None, wo_a_scales=None) -> torch.Tensor:
    return ops.grouped_output_projection(o, o_scales, wo_a, wo_a_scales, groups=groups)


def off(got: torch.Tensor, x: np.ndarray, weight: np.ndarray, groups: int) -> float:
    """Worst relative L2 error of a group; x [T, G, I], weight [G * out, I]."""
    parts = np.split(weight.astype(np.float64), groups)
    errors = []
    for g, w in enumerate(parts):
        exact = x[:, g].astype(np.float64) @ w.T
        errors.append(np.linalg.norm(array(got)[:, g] - exact) / np.linalg.norm(exact))
    return max(errors)


def operands(
    rng, tokens: int, heads: int, groups: int, rank: int, dtype=BF16
) -> tuple[torch.Tensor, torch.Tensor]:
    o = torch.from_numpy(rng.standard_normal((tokens, heads, 512), F32)).to(dtype)
    width = heads * 512 // groups
    return o, torch.from_numpy(rng.standard_normal((groups * rank, width), F32) * F32(width**-0.5)).to(dtype)


@pytest.mark.parametrize("dtype", [BF16, torch.float32])
@pytest.mark.parametrize(("heads", "groups", "rank"), [(4, 2, 16), (16, 2, 160), (3, 1, 7), (4, 4, 32)])
def test_bound(ops, rng, heads: int, groups: int, rank: int, dtype) -> None:
    o, wo_a = operands(rng, 6, heads, groups, rank, dtype)
    got = call(ops, o, wo_a, groups)
    assert got.shape == (6, groups, rank) and got.dtype == dtype
    assert off(got, array(o).reshape(6, groups, -1), array(wo_a), groups) <= (4e-3 if dtype == BF16 else 2e-6)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [BF16, torch.float32])
@pytest.mark.parametrize(("heads", "groups", "rank"), [(4, 2, 16), (16, 2, 128), (8, 1, 1024)])
def test_a_row_alone_equals_the_row_in_a_batch(ops, rng, heads, groups, rank, dtype, threads: int) -> None:
    torch.set_num_threads(threads)
    o, wo_a = operands(rng, 33, heads, groups, rank, dtype)
    whole = call(ops, o, wo_a, groups)
    for tokens in range(1, 33) if rank == 16 else (1, 3, 8, 9, 16, 25, 32):
        assert torch.equal(call(ops, o[:tokens], wo_a, groups), whole[:tokens]), tokens
    for row in (1, 32):
        assert torch.equal(call(ops, o[row : row + 1], wo_a, groups)[0], whole[row])


@pytest.mark.parametrize("scale_format", ["f32", "ue8m0x4"])
@pytest.mark.parametrize("quantised_weight", [False, True])
def test_quantised_operands(ops, rng, scale_format: str, quantised_weight: bool) -> None:
    heads, groups, rank = 8, 2, 128
    o = tensor_bf16(rng.standard_normal((5, heads, 512)) * np.exp2(rng.integers(-6, 3, (5, heads, 1))))
    codes, scales = ops.fused_inv_rope_fp8_quant(
        o, torch.arange(5), torch.from_numpy(angles(5)), groups=groups, scale_format=scale_format
    )
    scale = (
        scales.numpy()
        if scale_format == "f32"
        else np.ldexp(F32(1), scales.numpy().view(np.uint8).astype(np.int32) - 127)
    )
    x = e4m3_values(array(codes)) * scale.repeat(128, -1)
    if quantised_weight:
        byte = rng.integers(0, 127, (groups * rank, 2048)).astype(np.uint8)
        block = rng.integers(110, 118, (groups * rank // 128, 16)).astype(np.uint8)
        weight, dense = torch.from_numpy(byte).view(torch.float8_e4m3fn), e4m3_values(byte)
        dense = dense * np.ldexp(F32(1), block.astype(np.int32) - 127).repeat(128, 0).repeat(128, 1)
        for wo_a_scales in (
            torch.from_numpy(block),
            torch.from_numpy(np.ldexp(F32(1), block.astype(np.int32) - 127)),
        ):
            got = call(ops, codes, weight, groups, scales, wo_a_scales)
            assert got.dtype == BF16 and off(got, x, bf16(dense), groups) <= 4e-3
    else:
        _, wo_a = operands(rng, 1, heads, groups, rank)
        got = call(ops, codes, wo_a, groups, scales)
        assert got.dtype == BF16 and off(got, x, array(wo_a), groups) <= 4e-3
        for t in range(5):
            assert torch.equal(call(ops, codes[t : t + 1], wo_a, groups, scales[t : t + 1])[0], got[t])


def test_strides_and_no_tokens(ops, rng) -> None:
    o, wo_a = operands(rng, 4, 4, 2, 16)
    wide = torch.zeros(4, 6, 520, dtype=BF16)
    wide[:, 1:5, 4:516] = o
    assert torch.equal(call(ops, wide[:, 1:5, 4:516], wo_a, 2), call(ops, o, wo_a, 2))
    assert call(ops, o[:0], wo_a, 2).shape == (0, 2, 16)
    codes = torch.zeros(0, 2, 1024, dtype=torch.uint8).view(torch.float8_e4m3fn)
    for scales in (torch.zeros(0, 2, 8), torch.zeros(0, 2, 2, dtype=torch.int32)):
        assert call(ops, codes, wo_a, 2, scales).shape == (0, 2, 16)


def test_refusals(ops, rng) -> None:
    o, wo_a = operands(rng, 2, 4, 2, 16)
    codes = torch.zeros(2, 2, 1024, dtype=torch.uint8).view(torch.float8_e4m3fn)
    for arguments, argument in [
        ((o, wo_a, 3), "groups"), ((o, wo_a, 0), "groups"), ((o, wo_a[:, :512], 2), "wo_a"),
        ((codes, wo_a, 2), "o_scales"), ((o, wo_a, 2, torch.ones(2, 2, 8)), "o_scales"),
        ((codes, wo_a, 2, torch.ones(2, 2, 7)), "o_scales"),
        ((o, wo_a, 2, None, torch.ones(1, 8)), "wo_a_scales"),
    ]:  # fmt: skip
        with pytest.raises(OpArgumentError) as caught:
            call(ops, *arguments)
        assert caught.value.argument == argument
