"""Index queries: bytes, scales and folded weights, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from op_reference import (
    F32,
    angles,
    array,
    bf16,
    blocks_e2m1,
    blocks_e4m3,
    hadamard,
    plain_e4m3,
    rope,
    same,
    tensor_bf16,
)

from dsv4core.errors import OpArgumentError

TABLE = angles(64)
SOFTMAX, HEAD = 128**-0.5, 11**-0.5  # not a power of two, so that the order of the products shows


def call(ops, positions, q, weights, format: str, rotate: str):
    return ops.fused_indexer_q_rope_quant(
        positions,
        q,
        torch.from_numpy(TABLE),
        weights,
        softmax_scale=SOFTMAX,
        head_scale=HEAD,
        format=format,
        rotate=rotate,
    )


def queries(rng, tokens: int, heads: int) -> torch.Tensor:
    q = tensor_bf16(
        rng.standard_normal((tokens, heads, 128)) * np.exp2(rng.integers(-25, 12, (tokens, heads, 1)))
    )
    if tokens:
        q[0, 0] = 0
        q[0, 1, :32] = 0
        q[0, 1, 40] = 6.0
    return q


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rotate", ["none", "hadamard"])
@pytest.mark.parametrize("format", ["fp8", "fp8_f32", "mxfp4"])
def test_bits(ops, rng, format: str, rotate: str, weights: torch.dtype) -> None:
    q = queries(rng, 270, 6)
    w = torch.from_numpy(rng.standard_normal((270, 9)).astype(F32)).to(weights)[:, 2:8]
    positions = torch.from_numpy(rng.integers(0, 64, 270))
    codes, scales, folded = call(ops, positions, q, w, format, rotate)
    x = bf16(rope(array(q), TABLE[positions.numpy()][:, None]))
    x = hadamard(x) if rotate == "hadamard" else x
    weight = array(w)
    if format == "fp8":
        expected, e = blocks_e4m3(x, 128)
        assert codes.dtype == torch.float8_e4m3fn and scales is None
        weight = weight * np.ldexp(F32(1), e[..., 0]).astype(F32)
    elif format == "fp8_f32":
        expected, scale = plain_e4m3(x)
        assert codes.dtype == torch.float8_e4m3fn and scales is None
        weight = weight * scale
    else:
        expected, byte = blocks_e2m1(x)
        assert codes.dtype == torch.uint8 and (scales.numpy() == byte).all()
    assert (array(codes) == expected).all()
    same(folded, (weight * F32(SOFTMAX)) * F32(HEAD))


def test_f32_of_profile_math(ops, rng) -> None:
    q = torch.from_numpy(rng.standard_normal((5, 3, 128)).astype(F32))
    w = torch.from_numpy(rng.standard_normal((5, 3)).astype(F32))
    positions = torch.arange(5)
    values, scales, folded = call(ops, positions, q, w, "f32", "none")
    assert scales is None
    same(values, rope(q.numpy(), TABLE[:5, None]))
    same(folded, (w.numpy() * F32(SOFTMAX)) * F32(HEAD))


def test_mxfp4_vectors(ops) -> None:
    # UE8M0 scales (docs/arithmetic.md, rule 7): amax -> byte, and the thresholds of e2m1 at exponent 0.
    for amax, byte in [(0.0, 1), (1.0, 125), (6.0, 127), (6.03125, 128)]:
        q = torch.zeros(1, 1, 128, dtype=torch.bfloat16)
        q[0, 0, 3::32] = amax
        identity = torch.cat((torch.ones(1, 32), torch.zeros(1, 32)), 1)
        _, scales, _ = ops.fused_indexer_q_rope_quant(
            torch.zeros(1, dtype=torch.int64), q, identity, torch.ones(1, 1),
            softmax_scale=1.0, head_scale=1.0, format="mxfp4", rotate="none",
        )  # fmt: skip
        assert scales[0, 0].tolist() == [byte] * 4
    y = [6.0, 0.25, 0.26, 0.75, 1.25, 1.26, 1.75, 2.5, 2.51, 3.5, 5.0, 5.03, -0.25, -0.0, -0.26, 0.0]
    q[0, 0, :16] = torch.tensor(y)
    q[0, 0, 16:] = 0
    codes, _, _ = ops.fused_indexer_q_rope_quant(
        torch.zeros(1, dtype=torch.int64), q, identity, torch.ones(1, 1), softmax_scale=1.0, head_scale=1.0,
        format="mxfp4", rotate="none",
    )  # fmt: skip
    nibbles = [n for b in codes[0, 0, :8].tolist() for n in (b & 15, b >> 4)]
    assert nibbles == [7, 0, 1, 2, 2, 3, 4, 4, 5, 6, 6, 7, 8, 8, 9, 0]


def test_slices_and_no_tokens(ops, rng) -> None:
    wide = queries(rng, 6, 5)[..., :]
    padded = torch.zeros(6, 7, 140, dtype=torch.bfloat16)
    padded[:, 1:6, 5:133] = wide
    w = torch.ones(6, 5)
    a = call(ops, torch.arange(12)[::2], padded[:, 1:6, 5:133], w, "fp8", "none")
    b = call(ops, torch.arange(12)[::2].clone(), wide, w, "fp8", "none")
    assert (array(a[0]) == array(b[0])).all() and torch.equal(a[2], b[2])
    for format, shape in (("fp8", (0, 5, 128)), ("fp8_f32", (0, 5, 128)), ("mxfp4", (0, 5, 64))):
        values, scales, folded = call(ops, torch.arange(0), wide[:0], w[:0], format, "none")
        assert values.shape == shape and folded.shape == (0, 5) and (scales is None) == (format != "mxfp4")


def test_refusals(ops, rng) -> None:
    q, w = queries(rng, 2, 2), torch.ones(2, 2)
    for argument, positions, format, rotate in [
        ("positions", [0, 64], "fp8", "none"), ("positions", [-1, 0], "fp8", "none"),
        ("format", [0, 1], "fp6", "none"), ("rotate", [0, 1], "fp8", "yes"),
    ]:  # fmt: skip
        with pytest.raises(OpArgumentError) as caught:
            call(ops, torch.tensor(positions), q, w, format, rotate)
        assert caught.value.argument == argument
