"""Attention of single tokens over the pages, turned back and, if asked, quantised: no bf16 in between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dsv4core.ops._attend import ATTENTION
from dsv4core.ops._contract import F32, I64, check_range, spec
from dsv4core.ops._op import OPS, Tolerance, op
from dsv4core.ops.fused_inv_rope_fp8_quant import FORMATS, check_output, fused_inv_rope_fp8_quant
from dsv4core.ops.inverse_rope import inverse_rope
from dsv4core.ops.sparse_decode import OVER_PAGES, check_over_pages, extra_list, sparse_decode

NAME = "fused_sparse_decode_inv_rope"
UNQUANTISED = "none"
TURNED = Tolerance(
    "turned attention",
    ATTENTION.bound,
    "L2 per (token, head), of the L2 norm of sum_j p_j |k_j|, beside half a step of every channel's code:"
    " rounding P to bf16 and the output once; turning keeps lengths",
)


def _fake(
    q: Tensor, swa_cache: Tensor, swa_slots: Tensor, swa_lens: Tensor, extra_cache: Tensor | None,
    extra_slots: Tensor | None, extra_lens: Tensor | None, attn_sink: Tensor, positions: Tensor,
    cos_sin: Tensor, *, scale: float, swa_rows: int, extra_rows: int, layout: str, extra_layout: str,
    groups: int, scale_format: str,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    if scale_format == UNQUANTISED:
        return q.new_empty(q.shape), None
    quantise = OPS["fused_inv_rope_fp8_quant"].fake
    return quantise(q, positions, cos_sin, groups=groups, scale_format=scale_format)


def _values(a: Mapping[str, Any], dims: Mapping[str, int]) -> None:
    check_over_pages(NAME, a, dims)
    check_range(NAME, "positions", a["positions"], 0, dims["P"], "positions")


@op(
    fake=_fake,
    tolerance=TURNED,
    values=_values,
    optional_results=(1,),
    optional=True,
    tensors={
        **OVER_PAGES,
        "positions": spec("T", I64, strides="any"),
        "cos_sin": spec("P 64", F32, finite=False),
    },
)
def fused_sparse_decode_inv_rope(
    q: Tensor, swa_cache: Tensor, swa_slots: Tensor, swa_lens: Tensor, extra_cache: Tensor | None,
    extra_slots: Tensor | None, extra_lens: Tensor | None, attn_sink: Tensor, positions: Tensor,
    cos_sin: Tensor, *, scale: float, swa_rows: int, extra_rows: int, layout: str, extra_layout: str,
    groups: int, scale_format: str,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Attend as `sparse_decode`, turn back by the query's position, and round once.

    Shapes: q to attn_sink as `sparse_decode`'s, positions i64 [T], cos_sin f32 [P, 64] -> bf16 [T, H, 512]
    (f32 for q in f32) and None ("none"), or e4m3 [T, G, H*512/G] and scales f32 [T, G, H*512/G/128] ("f32")
    or i32 [T, G, .../4] ("ue8m0x4") as `fused_inv_rope_fp8_quant` has them. `groups` divides H in every
    format. A row without keys is 0. There is no lse: what was turned and rounded joins no other part.
    """
    check_output(NAME, q.shape[1], groups, scale_format, (UNQUANTISED, *FORMATS))
    if extra_cache is not None:
        extra_slots, extra_lens = extra_list(NAME, extra_slots, extra_lens)
    o = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    sparse_decode(
        q, swa_cache, swa_slots, swa_lens, extra_cache, extra_slots, extra_lens, attn_sink, o, scale=scale,
        swa_rows=swa_rows, extra_rows=extra_rows, layout=layout, extra_layout=extra_layout,
    )  # fmt: skip
    if scale_format == UNQUANTISED:
        return inverse_rope(o, positions, cos_sin).to(q.dtype), None
    return fused_inv_rope_fp8_quant(o, positions, cos_sin, groups=groups, scale_format=scale_format)
