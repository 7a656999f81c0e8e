"""Matrix products whose rows do not depend on how many rows came with them.

Measured on a CPU with torch 2.13: `F.linear` of one row differs from the same row in a batch (bf16 T = 1, f32
T = 1..7 and 9); with T zero-padded to a multiple of 8 no call differed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv4core.numerics import e2m1, e4m3, ue8m0
from dsv4core.ops._op import Tolerance

ROW_BLOCK = 8
MATMUL = Tolerance("matmul", 4e-3, "relative L2 in bf16 against f64 of the same operands")


def row_invariant_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight^T with T padded to a multiple of 8. Shapes: x [T, in], weight [out, in] -> [T, out]."""
    tokens = x.shape[0]
    short = -tokens % ROW_BLOCK
    if tokens == 0:
        return x.new_empty(0, weight.shape[0])
    padded = F.pad(x, (0, 0, 0, short)) if short else x.contiguous()
    return F.linear(padded, weight)[:tokens]


def block_dequantise(codes: Tensor, scales: Tensor) -> Tensor:
    """e4m3 weights with one scale per 128 x 128 block, as f32.

    Shapes: [out, in], [ceil(out/128), ceil(in/128)].
    """
    scale = scale_values(scales)
    scale = scale.repeat_interleave(128, 0)[: codes.shape[0]].repeat_interleave(128, 1)[:, : codes.shape[1]]
    return e4m3.decode(codes.view(torch.uint8)) * scale


def group_dequantise(packed: Tensor, scales: Tensor) -> Tensor:
    """e2m1 weights, two per byte, one scale per group of consecutive inputs, as f32.

    Shapes: u8 [out, in/2], [out, in/g].
    """
    values = e2m1.decode(e2m1.unpack(packed))
    scale = scale_values(scales)
    return values * scale.repeat_interleave(values.shape[1] // scale.shape[1], dim=1)


def scale_values(scales: Tensor) -> Tensor:
    """Scales as f32: f32 itself, e4m3 decoded, UE8M0 bytes (u8 or float8_e8m0fnu) as powers of two."""
    if scales.dtype == torch.float32:
        return scales
    if scales.dtype == torch.float8_e4m3fn:
        return e4m3.decode(scales.view(torch.uint8))
    return ue8m0.exp2(ue8m0.byte_exponent(scales.view(torch.uint8)))
