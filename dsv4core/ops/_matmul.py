"""Matrix products whose rows do not depend on how many rows came with them.

Measured on a CPU with torch 2.13: `F.linear` of one row differs from the same row in a batch (bf16 T = 1, f32
T = 1..7 and 9); with T zero-padded to a multiple of 8 no call differed.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from dsv4core.numerics import e2m1
from dsv4core.numerics.block_fp8 import scale_values
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


def group_dequantise(packed: Tensor, scales: Tensor) -> Tensor:
    """e2m1 weights, two per byte, one scale per group of consecutive inputs, as f32.

    Shapes: u8 [out, in/2], [out, in/g].
    """
    values = e2m1.decode(e2m1.unpack(packed))
    scale = scale_values(scales)
    return values * scale.repeat_interleave(values.shape[1] // scale.shape[1], dim=1)
