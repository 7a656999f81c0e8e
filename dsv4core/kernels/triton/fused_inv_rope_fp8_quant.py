"""Inverse RoPE and e4m3 quantisation of the attention output in one step."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.kernels.triton._heads import angles, token_and_head
from dsv4core.kernels.triton._launch import launch, pieces
from dsv4core.kernels.triton._tuning import native_e4m3, tuned
from dsv4core.kernels.triton.numerics import (
    encode_e4m3,
    exponent_e4m3,
    power_of_two,
    rotate,
    scale_byte,
    widen,
)

NAME = "fused_inv_rope_fp8_quant"


@triton.jit(do_not_specialize=["tokens", "positions"])
def fused_inv_rope_fp8_quant_kernel(
    o, positions, cos_sin, codes, scales, tokens, heads, token_stride, head_stride, position_stride,
    table_stride, PACKED: tl.constexpr, HARDWARE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One program turns and quantises ROWS heads: four groups of 128 channels each."""
    t, h = token_and_head(tl.program_id(0) * ROWS + tl.arange(0, ROWS), heads)
    live = t < tokens
    mask = live[:, None]
    d = tl.arange(0, 512)[None, :]
    j = tl.arange(0, 64)[None, :]
    g = tl.arange(0, 4)[None, :]
    cos, sin = angles(cos_sin, positions, t, live, position_stride, table_stride)
    start = o + (t * token_stride + h * head_stride)[:, None]
    nope = widen(tl.load(start + d, mask & (d < 448), other=0.0))
    tail = widen(tl.load(start + 448 + j, mask & (j < 64), other=0.0))
    tail = rotate(tail, cos, sin, True, 64)

    grouped = tl.reshape(nope, (ROWS, 4, 128))
    amax = tl.max(tl.abs(grouped), 2)
    last = tl.max(tl.abs(tail), 1)[:, None]  # the rotated channels belong to the fourth group
    amax = tl.where(g == 3, tl.maximum(amax, last), amax)
    exponent = exponent_e4m3(tl.maximum(amax, 1e-10))
    inverse = power_of_two(-exponent)
    inverse_last = power_of_two(-tl.sum(tl.where(g == 3, exponent, 0), 1))[:, None]

    row = t * heads + h
    place = codes + (row * 512)[:, None]
    encoded = tl.reshape(encode_e4m3(grouped * inverse[:, :, None], HARDWARE), (ROWS, 512))
    tl.store(place + d, encoded, mask & (d < 448))
    tl.store(place + 448 + j, encode_e4m3(tail * inverse_last, HARDWARE), mask & (j < 64))
    if PACKED:
        word = tl.sum(scale_byte(exponent) << (8 * g), 1)  # disjoint bytes: a sum is an or
        tl.store(scales + row, word, live)
    else:
        tl.store(scales + (row * 4)[:, None] + g, power_of_two(exponent), mask & (g < 4))


def fused_inv_rope_fp8_quant(
    o: Tensor, positions: Tensor, cos_sin: Tensor, *, groups: int, scale_format: str
) -> tuple[Tensor, Tensor]:
    """Rotate back and quantise per 128 channels, without a bf16 rounding in between.

    Shapes: o bf16 [T, H, 512], positions i64 [T], cos_sin f32 [P, 64] -> e4m3 [T, G, H*512/G] and scales f32
    [T, G, H*512/G/128] ("f32") or i32 [T, G, .../4] ("ue8m0x4": four exponent bytes, the first block lowest).
    """
    tokens, heads, _ = o.shape
    if groups < 1 or heads % groups:
        raise OpArgumentError(NAME, "groups", f"a divisor of {heads} heads", str(groups))
    if scale_format not in ("f32", "ue8m0x4"):
        raise OpArgumentError(NAME, "scale_format", "'f32' or 'ue8m0x4'", repr(scale_format))
    packed, per_group = scale_format == "ue8m0x4", heads // groups
    codes = o.new_empty(tokens, groups, per_group * 512, dtype=torch.uint8)
    if packed:
        scales = o.new_empty(tokens, groups, per_group, dtype=torch.int32)
    else:
        scales = o.new_empty(tokens, groups, per_group * 4, dtype=torch.float32)
    meta = tuned("fused_inv_rope_fp8_quant", o)
    launch(
        fused_inv_rope_fp8_quant_kernel, pieces(tokens * heads, meta["ROWS"]), o, o, positions, cos_sin,
        codes, scales, tokens, heads, o.stride(0), o.stride(1), positions.stride(0), cos_sin.stride(0),
        PACKED=packed, HARDWARE=native_e4m3(o), **meta,
    )  # fmt: skip
    return codes.view(torch.float8_e4m3fn), scales
