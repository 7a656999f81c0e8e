"""Rotate and quantise the indexer's queries and fold every scale into the head weights."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.kernels.triton._heads import angles, token_and_head
from dsv4core.kernels.triton._launch import block, launch, pieces
from dsv4core.kernels.triton._pages import quantise_fp8, quantise_mxfp4
from dsv4core.kernels.triton._tuning import native_e4m3
from dsv4core.kernels.triton.numerics import hadamard128, rotate, round_bf16, widen

NAME = "fused_indexer_q_rope_quant"
FORMATS = ("fp8", "fp8_f32", "mxfp4")


@triton.jit(do_not_specialize=["tokens", "positions"])
def fused_indexer_q_kernel(
    positions, q, cos_sin, weights, values, scales, folded,
    tokens, heads, position_stride, token_stride, head_stride, table_stride, weight_stride,
    softmax_scale, head_scale,
    FORMAT: tl.constexpr, HADAMARD: tl.constexpr, HARDWARE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One program rotates and quantises ROWS heads, each as two halves of 64 channels."""
    t, h = token_and_head(tl.program_id(0) * ROWS + tl.arange(0, ROWS), heads)
    live = t < tokens
    row = t * heads + h
    j = tl.arange(0, 64)[None, :]
    half = tl.arange(0, 32)[None, :]
    mask = live[:, None] & (j < 64)
    cos, sin = angles(cos_sin, positions, t, live, position_stride, table_stride)
    start = q + (t * token_stride + h * head_stride)[:, None]
    low = round_bf16(widen(tl.load(start + j, mask, other=0.0)))
    high = widen(tl.load(start + 64 + j, mask, other=0.0))
    high = round_bf16(rotate(high, cos, sin, False, 64))
    if HADAMARD:
        low, high = hadamard128(low, high)
    w = widen(tl.load(weights + t * weight_stride + h, live, other=0.0))
    if FORMAT == "mxfp4":
        g = tl.arange(0, 2)[None, :]
        packed = live[:, None] & (half < 32)
        some = live[:, None] & (g < 2)
        a, a_byte = quantise_mxfp4(low)
        b, b_byte = quantise_mxfp4(high)
        place, behind = values + (row * 64)[:, None], scales + (row * 4)[:, None]
        tl.store(place + half, a, packed)
        tl.store(place + 32 + half, b, packed)
        tl.store(behind + g, a_byte.to(tl.uint8), some)
        tl.store(behind + 2 + g, b_byte.to(tl.uint8), some)
    else:
        a, b, scale = quantise_fp8(low, high, FORMAT == "fp8_f32", HARDWARE)
        place = values + (row * 128)[:, None]
        tl.store(place + j, a, mask)
        tl.store(place + 64 + j, b, mask)
        w = w * scale
    tl.store(folded + row, (w * softmax_scale) * head_scale, live)


def fused_indexer_q_rope_quant(
    positions: Tensor, q: Tensor, cos_sin: Tensor, weights: Tensor, *,
    softmax_scale: float, head_scale: float, format: str, rotate: str,
) -> tuple[Tensor, Tensor | None, Tensor]:  # fmt: skip
    """RoPE on the last 64 channels, optional Hadamard, one bf16 rounding, then e4m3 or e2m1.

    Shapes: positions i64 [T], q bf16 [T, H, 128], cos_sin f32 [P, 64], weights [T, H] -> (values e4m3
    [T, H, 128], None) or (u8 [T, H, 64], scales u8 [T, H, 4]) for "mxfp4", and weights f32 [T, H].
    """
    if format not in FORMATS:
        raise OpArgumentError(
            NAME, "format", f"{' or '.join(FORMATS)}; the cpu backend has f32", repr(format)
        )
    if rotate not in ("none", "hadamard"):
        raise OpArgumentError(NAME, "rotate", "'none' or 'hadamard'", repr(rotate))
    tokens, heads, _ = q.shape
    mxfp4 = format == "mxfp4"
    values = q.new_empty(tokens, heads, 64 if mxfp4 else 128, dtype=torch.uint8)
    scales = q.new_empty(tokens, heads, 4, dtype=torch.uint8) if mxfp4 else None
    folded = weights.new_empty(tokens, heads, dtype=torch.float32)
    size = block(16, 128)
    launch(
        fused_indexer_q_kernel, pieces(tokens * heads, size), q, positions, q, cos_sin, weights, values,
        values if scales is None else scales, folded, tokens, heads, positions.stride(0), q.stride(0),
        q.stride(1), cos_sin.stride(0), weights.stride(0), softmax_scale, head_scale,
        FORMAT=format, HADAMARD=rotate == "hadamard", HARDWARE=native_e4m3(q), ROWS=size, num_warps=4,
    )  # fmt: skip
    return values if mxfp4 else values.view(torch.float8_e4m3fn), scales, folded
