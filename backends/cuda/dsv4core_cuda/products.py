"""Matrix products in one library call where the portable body takes several, or wider operands."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4core.ops import OPS

BF16, F32 = torch.bfloat16, torch.float32


def linear(
    x: Tensor, weight: Tensor, scales: Tensor | None, global_scale: Tensor | None, *, format: str,
    out_dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """The op; a product of bf16 matrices that is wanted in f32 is summed in f32 and never widened before.

    Shapes: x [T, in], weight [out, in] -> [T, out].
    """
    plain = format == "bf16" and scales is None and global_scale is None and weight.shape[1] == x.shape[1]
    if plain and x.is_cuda and x.dtype == weight.dtype == BF16 and out_dtype == F32:
        return torch.mm(x, weight.T, out_dtype=F32)
    return OPS["linear"].body(x, weight, scales, global_scale, format=format, out_dtype=out_dtype)


def grouped_output_projection(
    o: Tensor, o_scales: Tensor | None, wo_a: Tensor, wo_a_scales: Tensor | None, *, groups: int
) -> Tensor:
    """The op; groups of bf16 are one batched product. Shapes: o [T, H, 512] -> [T, G, o_lora]."""
    heads, outputs = o.shape[1], wo_a.shape[0]
    plain = o_scales is None and wo_a_scales is None and o.is_cuda and o.dtype == wo_a.dtype == BF16
    fits = groups > 0 and heads % groups == 0 and outputs % groups == 0
    if not plain or not fits or wo_a.shape[1] * groups != heads * o.shape[2]:
        return OPS["grouped_output_projection"].body(o, o_scales, wo_a, wo_a_scales, groups=groups)
    x = o.reshape(o.shape[0], groups, wo_a.shape[1])
    out = o.new_empty(o.shape[0], groups, outputs // groups)
    torch.bmm(x.transpose(0, 1), wo_a.view(groups, -1, wo_a.shape[1]).mT, out=out.transpose(0, 1))
    return out
