"""Projections: every format against float64, and rows that do not see each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from op_reference import F32, array, bf16, e2m1_values, e4m3_values, tensor_bf16

from dsv4core.errors import OpArgumentError

BF16 = torch.bfloat16
SHAPES = [(64, 24), (24, 2048), (1024, 512), (4096, 1024), (4096, 1536), (4096, 64), (7168, 256), (300, 130)]


def call(
    ops, x, weight, scales=None, global_scale=None, *, format: str = "bf16", out_dtype=BF16
) -> torch.Tensor:
    return ops.linear(x, weight, scales, global_scale, format=format, out_dtype=out_dtype)


def off(got: torch.Tensor, x: np.ndarray, dense: np.ndarray) -> float:
    """Relative L2 error against float64 of the same operands."""
    exact = x.astype(np.float64) @ dense.astype(np.float64).T
    return float(np.linalg.norm(array(got).astype(np.float64) - exact) / np.linalg.norm(exact))


def operands(rng, tokens: int, inputs: int, outputs: int, dtype=BF16) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.from_numpy(rng.standard_normal((tokens, inputs), F32)).to(dtype)
    return x, torch.from_numpy(rng.standard_normal((outputs, inputs), F32) * F32(inputs**-0.5)).to(dtype)


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 24), (4096, 96), (300, 130)])
@pytest.mark.parametrize(
    ("x_type", "out_type", "bound"),
    [(BF16, BF16, 4e-3), (BF16, torch.float32, 2e-6), (torch.float32, torch.float32, 2e-6)],
)
def test_plain_weights(ops, rng, inputs: int, outputs: int, x_type, out_type, bound: float) -> None:
    x, weight = operands(rng, 9, inputs, outputs, x_type)
    got = call(ops, x, weight, out_dtype=out_type)
    assert got.dtype == out_type and off(got, array(x), array(weight)) <= bound


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["bf16", "f32", "bf16 to f32"])
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_a_row_alone_equals_the_row_in_a_batch(
    ops, rng, inputs: int, outputs: int, kind: str, threads: int
) -> None:
    torch.set_num_threads(threads)
    x, weight = operands(rng, 33, inputs, outputs, torch.float32 if kind == "f32" else BF16)
    out_dtype = BF16 if kind == "bf16" else torch.float32
    whole = call(ops, x, weight, out_dtype=out_dtype)
    for tokens in (1, 2, 7, 8, 9, 16, 17, 31, 32):
        assert torch.equal(call(ops, x[:tokens], weight, out_dtype=out_dtype), whole[:tokens]), tokens
    for row in (1, 13, 32):
        assert torch.equal(call(ops, x[row : row + 1], weight, out_dtype=out_dtype)[0], whole[row])


@pytest.mark.parametrize("dtype", [BF16, torch.float32])
def test_every_batch_from_1_to_33(ops, rng, dtype) -> None:
    x, weight = operands(rng, 33, 1024, 512, dtype)
    whole = call(ops, x, weight, out_dtype=dtype)
    for tokens in range(1, 33):
        assert torch.equal(call(ops, x[:tokens], weight, out_dtype=dtype), whole[:tokens]), tokens


@pytest.mark.parametrize("dtype", [BF16, torch.float32])
def test_large_batches_give_the_same_rows(ops, rng, dtype) -> None:
    x, weight = operands(rng, 600, 512, 320, dtype)
    whole = call(ops, x, weight, out_dtype=dtype)
    for part in (slice(0, 40), slice(100, 164), slice(77, 333), slice(599, 600)):
        assert torch.equal(call(ops, x[part], weight, out_dtype=dtype), whole[part]), part


@pytest.mark.parametrize("ue8m0", ["no", "bytes", "dtype"])
@pytest.mark.parametrize(("inputs", "outputs"), [(512, 256), (200, 130)])
def test_fp8_block(ops, rng, inputs: int, outputs: int, ue8m0: str) -> None:
    code = rng.integers(0, 127, (outputs, inputs)) + 128 * rng.integers(0, 2, (outputs, inputs))
    shape = (-(-outputs // 128), -(-inputs // 128))
    if ue8m0 == "no":
        scale = rng.uniform(1e-4, 3e-4, shape).astype(F32)
        scales = torch.from_numpy(scale)
    else:
        byte = rng.integers(110, 120, shape).astype(np.uint8)
        scale = np.ldexp(F32(1), byte.astype(np.int32) - 127)
        scales = (
            torch.from_numpy(byte) if ue8m0 == "bytes" else torch.from_numpy(byte).view(torch.float8_e8m0fnu)
        )
    dense = e4m3_values(code) * scale.repeat(128, 0)[:outputs].repeat(128, 1)[:, :inputs]
    weight = torch.from_numpy(code.astype(np.uint8)).view(torch.float8_e4m3fn)
    x = tensor_bf16(rng.standard_normal((5, inputs)))
    assert off(call(ops, x, weight, scales, format="fp8_block"), array(x), bf16(dense)) <= 4e-3
    assert off(call(ops, x, weight, scales, format="fp8_block"), array(x), dense) <= 4e-3
    assert (
        off(call(ops, x, weight, scales, format="fp8_block", out_dtype=torch.float32), array(x), dense)
        <= 2e-6
    )


def test_every_code_of_a_block_weight(ops) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    codes[[0x7F, 0xFF]] = 0
    eye = torch.eye(256, dtype=BF16)
    got = call(
        ops, eye, codes.repeat(3, 1).view(torch.float8_e4m3fn), torch.tensor([[0.5, 4.0]]), format="fp8_block"
    )
    expected = e4m3_values(codes.numpy()) * np.repeat([0.5, 4.0], 128)
    assert (array(got) == expected[:, None].repeat(3, 1)).all()


@pytest.mark.parametrize("format", ["nvfp4", "mxfp4"])
def test_four_bits(ops, rng, format: str) -> None:
    group = 16 if format == "nvfp4" else 32
    packed = rng.integers(0, 256, (70, 160), dtype=np.uint8)
    x = tensor_bf16(rng.standard_normal((5, 320)))
    if format == "nvfp4":
        code = rng.integers(1, 127, (70, 320 // group)).astype(np.uint8)
        global_scale = torch.tensor([0.0123])
        scales, scale = torch.from_numpy(code).view(torch.float8_e4m3fn), e4m3_values(code)
        factor = F32(0.0123)
    else:
        code = rng.integers(100, 140, (70, 320 // group)).astype(np.uint8)
        global_scale, factor = None, F32(1)
        scales, scale = torch.from_numpy(code), np.ldexp(F32(1), code.astype(np.int32) - 127)
    dense = e2m1_values(packed) * scale.repeat(group, 1) * factor
    weight = torch.from_numpy(packed)
    assert off(call(ops, x, weight, scales, global_scale, format=format), array(x), dense) <= 4e-3
    got = call(ops, x, weight, scales, global_scale, format=format, out_dtype=torch.float32)
    assert off(got, array(x), dense) <= 2e-6
    assert torch.equal(
        call(ops, x[2:3], weight, scales, global_scale, format=format, out_dtype=torch.float32)[0], got[2]
    )
    eye = call(
        ops, torch.eye(320, dtype=BF16), weight, scales, global_scale, format=format, out_dtype=torch.float32
    )
    assert np.allclose(eye.numpy(), dense.T, rtol=1e-6, atol=0)


def test_strides_and_no_tokens(ops, rng) -> None:
    x, weight = operands(rng, 5, 64, 24)
    wide_x, wide_w = torch.cat((x, x, x), 1), torch.cat((weight, weight), 1)
    assert torch.equal(call(ops, wide_x[:, 64:128], wide_w[:, 64:]), call(ops, x, weight))
    for dtype in (BF16, torch.float32):
        assert call(ops, x[:0], weight, out_dtype=dtype).shape == (0, 24)
        assert call(ops, x[:0], weight, out_dtype=dtype).dtype == dtype


def test_refusals(ops) -> None:
    x, e4m3 = (
        torch.zeros(2, 256, dtype=BF16),
        torch.zeros(130, 256, dtype=torch.uint8).view(torch.float8_e4m3fn),
    )
    u8, one = torch.zeros(130, 128, dtype=torch.uint8), torch.ones(1)
    for weight, scales, global_scale, format, argument in [
        (e4m3, None, None, "bf16", "weight"), (e4m3, None, None, "fp8_block", "scales"),
        (u8, None, None, "int4", "format"), (e4m3, torch.ones(1, 2), None, "fp8_block", "scales"),
        (u8, torch.ones(130, 8), None, "nvfp4", "global_scale"),
        (u8, torch.zeros(130, 8, dtype=torch.uint8), one, "mxfp4", "global_scale"),
        (torch.zeros(3, 255, dtype=BF16), None, None, "bf16", "weight"),
    ]:  # fmt: skip
        with pytest.raises(OpArgumentError) as caught:
            call(ops, x, weight, scales, global_scale, format=format)
        assert caught.value.argument == argument, format
