"""Stored weights as bf16 matrices: for products of so many tokens that dequantising costs little."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv4core.kernels.triton._launch import launch, pieces, power
from dsv4core.kernels.triton._tuning import native_e4m3, tuned
from dsv4core.kernels.triton.numerics import byte_scale, decode_e2m1, decode_e4m3, to_bf16
from dsv4core.kernels.triton.quantised_linear import FORMATS


@triton.jit
def dequantise_weight_kernel(
    weight, scales, factor, out, inputs, scale_stride, INPUTS: tl.constexpr, FORMAT: tl.constexpr,
    BYTES: tl.constexpr, HARDWARE: tl.constexpr,
):  # fmt: skip
    """One program writes INPUTS values of one row."""
    row = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1) * INPUTS
    k = start + tl.arange(0, INPUTS)
    live = k < inputs
    if FORMAT == 0:
        values = decode_e4m3(tl.load(weight + row * inputs + k, live, other=0), HARDWARE)
        scale = tl.load(scales + row // 128 * scale_stride + k // 128, live, other=0)
        values = values * (byte_scale(scale) if BYTES else scale)
    else:
        GROUP: tl.constexpr = 16 if FORMAT == 1 else 32
        pair = tl.load(weight + row * (inputs // 2) + k // 2, live, other=0).to(tl.int32)
        code = tl.load(scales + row * scale_stride + k // GROUP, live, other=0)
        scale = decode_e4m3(code, HARDWARE) if FORMAT == 1 else byte_scale(code)
        values = decode_e2m1((pair >> (k % 2 * 4)) & 15) * scale
        if FORMAT == 1:
            values = values * tl.load(factor)
    tl.store(out + row * inputs + k, to_bf16(values), live)


def dequantise_weight(weight: Tensor, scales: Tensor, global_scale: Tensor | None, *, format: str) -> Tensor:
    """The matrix, rounded to bf16 once: exact where scales are powers of two, and for mxfp4.

    Shapes: as `linear` has them -> bf16 [out, in].
    """
    rows, inputs = weight.shape[0], weight.shape[1] * (1 if format == "fp8_block" else 2)
    out = torch.empty(rows, inputs, dtype=torch.bfloat16, device=weight.device)
    meta = tuned("dequantise_weight", weight)
    meta["INPUTS"] = size = min(meta["INPUTS"], power(inputs))
    stored = scales if scales.dtype == torch.float32 else scales.view(torch.uint8)
    launch(
        dequantise_weight_kernel, (rows, pieces(inputs, size)), weight, weight.view(torch.uint8), stored,
        stored if global_scale is None else global_scale, out, inputs, scales.stride(0),
        FORMAT=FORMATS[format], BYTES=scales.dtype != torch.float32, HARDWARE=native_e4m3(weight),
        **meta,
    )  # fmt: skip
    return out
