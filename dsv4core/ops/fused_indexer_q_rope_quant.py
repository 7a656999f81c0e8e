"""Rotate and quantise the indexer's queries and fold every scale into the head weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.layout import rounding
from dsv4core.layout.index_fp8 import plain_scale
from dsv4core.numerics import e2m1, e4m3, ue8m0
from dsv4core.numerics.hadamard import hadamard128
from dsv4core.numerics.rope import rotate_tail
from dsv4core.ops._contract import ACTIVATION, F32, I64, NORM, check_range, spec
from dsv4core.ops._op import op
from dsv4core.ops._rows import block_rows, blocks

NAME = "fused_indexer_q_rope_quant"
FORMATS = ("fp8", "fp8_f32", "mxfp4", "f32")


def _fake(
    positions: Tensor, q: Tensor, cos_sin: Tensor, weights: Tensor, *,
    softmax_scale: float, head_scale: float, format: str, rotate: str,
) -> tuple[Tensor, Tensor | None, Tensor]:  # fmt: skip
    tokens, heads, dim = q.shape
    folded = weights.new_empty(tokens, heads, dtype=torch.float32)
    if format in ("fp8", "fp8_f32"):
        return q.new_empty(q.shape, dtype=torch.float8_e4m3fn), None, folded
    if format == "f32":
        return q.new_empty(q.shape, dtype=torch.float32), None, folded
    values = q.new_empty(tokens, heads, dim // 2, dtype=torch.uint8)
    return values, q.new_empty(tokens, heads, dim // 32, dtype=torch.uint8), folded


def _values(a: Mapping[str, Any], dims: Mapping[str, int]) -> None:
    check_range(NAME, "positions", a["positions"], 0, dims["P"], "positions")


@op(
    fake=_fake,
    values=_values,
    optional_results=(1,),
    tensors={
        "positions": spec("T", I64, strides="any"),
        "q": spec("T H 128", *ACTIVATION),
        "cos_sin": spec("P 64", F32, finite=False),
        "weights": spec("T H", *NORM),
    },
)
def fused_indexer_q_rope_quant(
    positions: Tensor, q: Tensor, cos_sin: Tensor, weights: Tensor, *,
    softmax_scale: float, head_scale: float, format: str, rotate: str,
) -> tuple[Tensor, Tensor | None, Tensor]:  # fmt: skip
    """RoPE on the last 64 channels, optional Hadamard, one bf16 rounding, then e4m3 or e2m1.

    Shapes: positions i64 [T], q bf16 [T, H, 128], cos_sin f32 [P, 64], weights bf16 or f32 [T, H] -> (values
    e4m3 [T, H, 128] and None) for "fp8" and "fp8_f32", (u8 [T, H, 64], scales u8 [T, H, 4]) for "mxfp4",
    (f32 [T, H, 128], None) for "f32"; and weights f32 [T, H] = ((w * S) * softmax_scale) * head_scale, where
    S is the query's own scale: 2^E in "fp8", max(amax, 1e-4) / 448 in "fp8_f32" (the queries of
    `index_fp8_hadamard_f32`), absent in the others. Source: CA1 rules 5, 7-10.
    """
    if format not in FORMATS:
        raise OpArgumentError(NAME, "format", " or ".join(FORMATS), repr(format))
    if rotate not in ("none", "hadamard"):
        raise OpArgumentError(NAME, "rotate", "'none' or 'hadamard'", repr(rotate))
    values, scales, folded = _fake(
        positions, q, cos_sin, weights,
        softmax_scale=softmax_scale, head_scale=head_scale, format=format, rotate=rotate,
    )  # fmt: skip
    for part in blocks(q.shape[0], block_rows(q.shape[1] * q.shape[2] * q.element_size(), q.device)):
        x = q[part].float() if format == "f32" else q[part]
        x = rotate_tail(x, cos_sin[positions[part]].unsqueeze(1))
        w = weights[part].float()
        if format != "f32":
            x = x.to(torch.bfloat16)
        if rotate == "hadamard":
            x = hadamard128(x)
        if format == "f32":
            values[part] = x
        elif format == "fp8":
            groups, amax = rounding.blocks(x, x.shape[-1])
            exponent = ue8m0.exponent_e4m3(amax.clamp(min=ue8m0.FLOOR_E4M3))
            codes = e4m3.encode(rounding.scaled(groups, exponent)).flatten(-2)
            values[part] = codes.view(torch.float8_e4m3fn)
            w = w * ue8m0.exp2(exponent).squeeze(-1)
        elif format == "fp8_f32":
            scale = plain_scale(x.float())
            values[part] = e4m3.encode(x.float() / scale).view(torch.float8_e4m3fn)
            w = w * scale.squeeze(-1)
        else:
            assert scales is not None
            groups, amax = rounding.blocks(x, 32)
            byte = ue8m0.to_byte(ue8m0.exponent_e2m1(amax.clamp(min=ue8m0.FLOOR_E2M1)))
            codes = e2m1.encode(rounding.scaled(groups, ue8m0.byte_exponent(byte))).flatten(-2)
            values[part] = e2m1.pack(codes)
            scales[part] = byte
        folded[part] = (w * _f32(softmax_scale, w)) * _f32(head_scale, w)
    return values, scales, folded


def _f32(value: float, like: Tensor) -> Tensor:
    return torch.full((), value, dtype=torch.float32, device=like.device)  # no copy from the host
