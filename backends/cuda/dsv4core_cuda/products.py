"""The output projection's groups in one library call; the portable body takes one a group."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4core.ops import OPS

BF16 = torch.bfloat16


def grouped_output_projection(
    o: Tensor, o_scales: Tensor | None, wo_a: Tensor, wo_a_scales: Tensor | None, *, groups: int
) -> Tensor:
    """The op; groups of bf16 are one batched product. Shapes: o [T, H, 512] -> [T, G, o_lora]."""
    heads, outputs = o.shape[1], wo_a.shape[0]
    plain = o_scales is None and wo_a_scales is None and o.is_cuda and o.dtype == wo_a.dtype == BF16
    fits = groups > 0 and heads % groups == 0 and outputs % groups == 0
    if not plain or not fits or wo_a.shape[1] * groups != heads * o.shape[2]:
        return OPS["grouped_output_projection"].body(o, o_scales, wo_a, wo_a_scales, groups=groups)
    x = o.contiguous().view(o.shape[0], groups, wo_a.shape[1])  # cuBLAS keeps distances in 32 bits
    out = o.new_empty(o.shape[0], groups, outputs // groups)
    torch.bmm(x.transpose(0, 1), wo_a.view(groups, -1, wo_a.shape[1]).mT, out=out.transpose(0, 1))
    return out
