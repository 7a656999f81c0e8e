"""Activations of fp8 linears: e4m3 with one UE8M0 scale per token and 128 channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv4core.numerics import e4m3, ue8m0

GROUP = 128
FAR = 2**31  # elements


def reachable(x: Tensor) -> Tensor:
    """x as kernels and libraries read it: the channels of a row side by side, and no row too far away.

    On a device libraries count elements in 32 bits where rows lie apart, and read elsewhere behind 2^31 of
    them.
    """
    if x.is_contiguous():  # mostly; a step asks this for every projection
        return x
    far = x.device.type != "cpu" and any(n * step >= FAR for n, step in zip(x.shape, x.stride(), strict=True))
    return x.contiguous() if far or x.stride(-1) != 1 else x


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales 2^ceil(log2(amax / 448)), amax floored at 1e-4 (DeepSeek's inference code).

    Shapes: bf16 or f32 [T, in] -> float8_e4m3fn [T, in], f32 [T, ceil(in/128)] of powers of two.
    """
    tokens, inputs = x.shape
    count = -(-inputs // GROUP)  # not -1, which torch cannot work out where there are no tokens
    groups = F.pad(x.float(), (0, -inputs % GROUP)).view(tokens, count, GROUP)
    amax = groups.abs().amax(dim=-1).clamp(min=ue8m0.FLOOR_E4M3)
    scales = ue8m0.exp2(ue8m0.exponent_e4m3(amax))
    codes = e4m3.encode(groups / scales.unsqueeze(-1)).view(tokens, count * GROUP)[:, :inputs]
    return codes.contiguous().view(torch.float8_e4m3fn), scales


def rounded(x: Tensor) -> Tensor:
    """What the codes of x stand for; exact in bf16. Shapes: [T, in] -> the same, in x's type."""
    codes, scales = quantise(x)
    factor = scales.repeat_interleave(GROUP, dim=1)[:, : x.shape[1]]
    return (e4m3.decode(codes.view(torch.uint8)) * factor).to(x.dtype)
