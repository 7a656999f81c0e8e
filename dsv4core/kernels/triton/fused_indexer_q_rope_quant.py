"""Rotate and quantise the indexer's queries and fold every scale into the head weights."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.kernels.triton._early import start_early
from dsv4core.kernels.triton._heads import angles
from dsv4core.kernels.triton._launch import launch, pieces, power
from dsv4core.kernels.triton._pages import quantise_fp8, quantise_mxfp4
from dsv4core.kernels.triton._tuning import native_e4m3, tuned
from dsv4core.kernels.triton.numerics import hadamard128, rotate, round_bf16, side_by_side, widen

NAME = "fused_indexer_q_rope_quant"
FORMATS = ("fp8", "fp8_f32", "mxfp4")


@triton.jit(do_not_specialize=["tokens", "positions"])
def fused_indexer_q_kernel(
    positions, q, cos_sin, weights, values, scales, folded,
    tokens, heads, position_stride, token_stride, head_stride, table_stride, weight_stride,
    softmax_scale, head_scale,
    FORMAT: tl.constexpr, HADAMARD: tl.constexpr, HARDWARE: tl.constexpr, ROWS: tl.constexpr,
    HEADS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One program rotates and quantises ROWS rows: HEADS neighbouring heads of one or more tokens."""
    start_early(EARLY)
    r = tl.arange(0, ROWS)
    t = (tl.program_id(0) * (ROWS // HEADS) + r // HEADS).to(tl.int64)
    h = tl.program_id(1) * HEADS + r % HEADS
    live = (t < tokens) & (h < heads)
    row = t * heads + h
    j = tl.arange(0, 64)[None, :]
    mask = live[:, None] & (j < 64)
    cos, sin = angles(cos_sin, positions, t, live, position_stride, table_stride)
    start = q + (t * token_stride + h.to(tl.int64) * head_stride)[:, None]
    low = widen(tl.load(start + j, mask, other=0.0))
    high = widen(tl.load(start + 64 + j, mask, other=0.0))
    x = side_by_side(low, round_bf16(rotate(high, cos, sin, False, 64)))
    if HADAMARD:
        x = hadamard128(x)
    grouped = tl.reshape(x, (ROWS, 4, 32))
    amax = tl.max(tl.abs(grouped), 2)
    w = widen(tl.load(weights + t * weight_stride + h, live, other=0.0))
    if FORMAT == "mxfp4":
        g = tl.arange(0, 4)[None, :]
        packed, byte = quantise_mxfp4(grouped, amax)
        tl.store(values + (row * 64)[:, None] + j, packed, mask)
        tl.store(scales + (row * 4)[:, None] + g, byte, live[:, None] & (g < 4))
    else:
        codes, scale = quantise_fp8(grouped, amax, FORMAT == "fp8_f32", HARDWARE)
        d = tl.arange(0, 128)[None, :]
        tl.store(values + (row * 128)[:, None] + d, codes, live[:, None] & (d < 128))
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
    meta = tuned("fused_indexer_q", q)
    size = min(meta["ROWS"], power(heads))
    grid = (pieces(tokens, meta["ROWS"] // size), pieces(heads, size))
    launch(
        fused_indexer_q_kernel, grid, q, positions, q, cos_sin, weights, values,
        values if scales is None else scales, folded, tokens, heads, positions.stride(0), q.stride(0),
        q.stride(1), cos_sin.stride(0), weights.stride(0), softmax_scale, head_scale,
        FORMAT=format, HADAMARD=rotate == "hadamard", HARDWARE=native_e4m3(q), HEADS=size, **meta,
    )  # fmt: skip
    return values if mxfp4 else values.view(torch.float8_e4m3fn), scales, folded
