"""Inverse RoPE and e4m3 quantisation of the attention output in one step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.numerics import e4m3, ue8m0
from dsv4core.numerics.rope import rotate_tail
from dsv4core.ops._contract import ACTIVATION, F32, I64, check_range, spec
from dsv4core.ops._op import op
from dsv4core.ops._rows import blocks

NAME = "fused_inv_rope_fp8_quant"
GROUP = 128  # channels per scale
TOKENS_PER_BLOCK = 128
FORMATS = ("f32", "ue8m0x4")


def _fake(
    o: Tensor, positions: Tensor, cos_sin: Tensor, *, groups: int, scale_format: str
) -> tuple[Tensor, Tensor]:
    tokens, width = o.shape[0], o.shape[1] * o.shape[2] // groups
    codes = o.new_empty(tokens, groups, width, dtype=torch.float8_e4m3fn)
    if scale_format == "f32":
        return codes, o.new_empty(tokens, groups, width // GROUP, dtype=torch.float32)
    return codes, o.new_empty(tokens, groups, width // GROUP // 4, dtype=torch.int32)


def check_output(op: str, heads: int, groups: int, scale_format: str, formats: tuple[str, ...]) -> None:
    """Raise OpArgumentError for groups that do not divide the heads and for an unknown format."""
    if groups < 1 or heads % groups:
        raise OpArgumentError(op, "groups", f"a divisor of {heads} heads", str(groups))
    if scale_format not in formats:
        raise OpArgumentError(op, "scale_format", " or ".join(map(repr, formats)), repr(scale_format))


def _values(a: Mapping[str, Any], dims: Mapping[str, int]) -> None:
    check_range(NAME, "positions", a["positions"], 0, dims["P"], "positions")


@op(
    fake=_fake,
    values=_values,
    tensors={
        "o": spec("T H 512", *ACTIVATION),
        "positions": spec("T", I64, strides="any"),
        "cos_sin": spec("P 64", F32, finite=False),
    },
)
def fused_inv_rope_fp8_quant(
    o: Tensor, positions: Tensor, cos_sin: Tensor, *, groups: int, scale_format: str
) -> tuple[Tensor, Tensor]:
    """Rotate back and quantise per 128 channels, without a bf16 rounding in between.

    Shapes: o bf16 [T, H, 512], positions i64 [T], cos_sin f32 [P, 64] -> e4m3 [T, G, H*512/G] and scales f32
    [T, G, H*512/G/128] ("f32") or i32 [T, G, .../4] ("ue8m0x4": four exponent bytes, the first block lowest).
    Source: CA1 rules 5, 7, 8; floor 1e-10 on amax.
    """
    check_output(NAME, o.shape[1], groups, scale_format, FORMATS)
    codes, scales = _fake(o, positions, cos_sin, groups=groups, scale_format=scale_format)
    for part in blocks(o.shape[0], TOKENS_PER_BLOCK):
        x = rotate_tail(o[part].float(), cos_sin[positions[part]].unsqueeze(1), inverse=True)
        x = x.reshape(x.shape[0], groups, -1, GROUP)
        exponent = ue8m0.exponent_e4m3(x.abs().amax(dim=-1).clamp(min=ue8m0.FLOOR_OUTPUT))
        codes[part] = (
            e4m3.encode(x * ue8m0.exp2(-exponent).unsqueeze(-1)).flatten(-2).view(torch.float8_e4m3fn)
        )
        if scale_format == "f32":
            scales[part] = ue8m0.exp2(exponent)
        else:
            scales[part] = ue8m0.to_byte(exponent).contiguous().view(torch.int32)
    return codes, scales
