"""First half of the output projection: one low-rank matrix per group of heads."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.numerics import e4m3, ue8m0
from dsv4core.numerics.block_fp8 import dequantise, scale_shape
from dsv4core.ops._contract import BF16, E4M3, E8M0, F32, I32, U8, spec
from dsv4core.ops._matmul import MATMUL, row_invariant_linear
from dsv4core.ops._op import op

NAME = "grouped_output_projection"


def _fake(
    o: Tensor, o_scales: Tensor | None, wo_a: Tensor, wo_a_scales: Tensor | None, *, groups: int
) -> Tensor:
    dtype = torch.float32 if o.dtype == torch.float32 else torch.bfloat16
    return o.new_empty(o.shape[0], groups, wo_a.shape[0] // groups, dtype=dtype)


@op(
    fake=_fake,
    tolerance=MATMUL,
    tensors={
        "o": spec("T A C", BF16, F32, E4M3),
        "o_scales": spec("T SG SC", F32, I32, optional=True),
        "wo_a": spec("O I", BF16, F32, E4M3, finite=False),
        "wo_a_scales": spec("SO SI", F32, U8, E8M0, optional=True),
    },
)
def grouped_output_projection(
    o: Tensor, o_scales: Tensor | None, wo_a: Tensor, wo_a_scales: Tensor | None, *, groups: int
) -> Tensor:
    """z[t, g] = wo_a[g] @ o[t, g]: group g owns heads g*H/G .. and rows g*o_lora .. of wo_a.

    Shapes: o bf16 [T, H, 512], or e4m3 [T, G, H*512/G] with o_scales of `fused_inv_rope_fp8_quant`; wo_a bf16
    [G*o_lora, H*512/G], or e4m3 with one scale per 128 x 128 block -> bf16 [T, G, o_lora]. Rows are
    independent.
    """
    if groups < 1 or wo_a.shape[0] % groups or o.shape[1] % groups:
        raise OpArgumentError(
            NAME,
            "groups",
            f"a divisor of {o.shape[1]} (dimension 1 of o) and {wo_a.shape[0]} (rows of wo_a)",
            str(groups),
        )
    if (o_scales is None) != (o.dtype != E4M3):
        raise OpArgumentError(NAME, "o_scales", "scales with e4m3, None with bf16", "the other")
    if (wo_a_scales is None) != (wo_a.dtype != E4M3):
        raise OpArgumentError(NAME, "wo_a_scales", "scales with e4m3, None with bf16", "the other")
    if wo_a_scales is not None and tuple(wo_a_scales.shape) != scale_shape(*wo_a.shape):
        want, got = list(scale_shape(*wo_a.shape)), list(wo_a_scales.shape)
        raise OpArgumentError(NAME, "wo_a_scales", f"shape {want}, one per 128 x 128 block of wo_a", str(got))
    x = _activation(o, o_scales, groups)
    if wo_a.shape[1] != x.shape[2]:
        raise OpArgumentError(NAME, "wo_a", f"{x.shape[2]} inputs per group", f"shape {list(wo_a.shape)}")
    work = F32 if wo_a_scales is not None and wo_a_scales.dtype == F32 else x.dtype  # as in `linear`
    weight = wo_a.to(work) if wo_a_scales is None else dequantise(wo_a, wo_a_scales, work)
    out, x = x.new_empty(x.shape[0], groups, wo_a.shape[0] // groups), x.to(work)
    for g, part in enumerate(weight.chunk(groups)):
        out[:, g] = row_invariant_linear(x[:, g], part)
    return out


def _activation(o: Tensor, scales: Tensor | None, groups: int) -> Tensor:
    """The operand per group, exact in bf16: an e4m3 code times a power of two. Shapes: -> [T, G, H*512/G]."""
    if scales is None:
        return o.reshape(o.shape[0], groups, o.shape[1] // groups * o.shape[2])
    if scales.dtype == I32:
        scales = ue8m0.exp2(ue8m0.byte_exponent(scales.contiguous().view(U8)))
    if o.shape[2] % 128 or tuple(scales.shape) != (o.shape[0], groups, o.shape[2] // 128):
        raise OpArgumentError(
            NAME, "o_scales", f"one per 128 of {o.shape[2]} channels", f"shape {list(scales.shape)}"
        )
    values = e4m3.decode(o.view(U8)).view(*scales.shape, 128) * scales.unsqueeze(-1)
    return values.view(o.shape).to(BF16)
