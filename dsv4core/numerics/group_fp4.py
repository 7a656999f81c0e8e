"""e2m1 weights with scales per group of inputs: NVFP4 (e4m3 per 16, one f32 factor), MXFP4 (UE8M0 per 32)."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4core.numerics import e2m1, e4m3, ue8m0
from dsv4core.numerics.block_fp8 import scale_values

NV_GROUP = 16
MX_GROUP = 32


def dequantise(packed: Tensor, scales: Tensor, global_scale: Tensor | None = None) -> Tensor:
    """The matrix as f32: code * scale is exact, the global factor is one more rounding.

    Shapes: u8 [out, in/2], e4m3 [out, in/16] or UE8M0 [out, in/32], f32 [1] or None -> f32 [out, in].
    """
    values = e2m1.decode(e2m1.unpack(packed))
    scale = scale_values(scales)
    values = values.view(*scale.shape, -1).mul_(scale.unsqueeze(-1)).view(values.shape)
    return values if global_scale is None else values.mul_(global_scale)


def global_factor(weight: Tensor) -> Tensor:
    """The f32 factor with which the greatest scale of a matrix is 448. Shapes: [out, in] -> f32 [1]."""
    amax = weight.float().abs().amax().clamp(min=2.0**-100)
    return (amax / (e2m1.MAX * e4m3.MAX)).reshape(1)


def quantise_nv(weight: Tensor, global_scale: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """NVFP4 codes, scales and factor; exact for a matrix that is on the grid of `global_scale`.

    Of every group the scale with the least squared error is taken among those that put its greatest
    magnitude on one of the codes. Shapes: [out, in] -> u8 [out, in/2], e4m3 [out, in/16], f32 [1].
    """
    rows, columns = _whole(weight, NV_GROUP)
    overall = global_factor(weight) if global_scale is None else global_scale.float().reshape(1)
    groups = (weight.float() / overall).view(rows, columns // NV_GROUP, NV_GROUP)
    amax = groups.abs().amax(dim=-1)
    best = torch.full_like(amax, torch.inf)
    scales, codes = torch.zeros_like(amax, dtype=torch.uint8), torch.zeros_like(groups, dtype=torch.uint8)
    for magnitude in reversed(e2m1.MAGNITUDES[1:]):
        code = e4m3.encode(amax / magnitude)
        scale = e4m3.decode(code).clamp(min=2.0**-9).unsqueeze(-1)
        tried = e2m1.encode(groups / scale)
        error = (e2m1.decode(tried) * e4m3.decode(code).unsqueeze(-1) - groups).square().sum(dim=-1)
        better = error < best
        best, scales = torch.where(better, error, best), torch.where(better, code, scales)
        codes = torch.where(better.unsqueeze(-1), tried, codes)
    return e2m1.pack(codes.view(rows, columns)), scales.view(torch.float8_e4m3fn), overall


def quantise_mx(weight: Tensor) -> tuple[Tensor, Tensor]:
    """MXFP4 codes and scales 2^ceil(log2(amax / 6)); exact for a matrix that is on such a grid.

    Shapes: [out, in] -> u8 [out, in/2], float8_e8m0fnu [out, in/32].
    """
    rows, columns = _whole(weight, MX_GROUP)
    groups = weight.float().view(rows, columns // MX_GROUP, MX_GROUP)
    amax = groups.abs().amax(dim=-1).clamp(min=ue8m0.FLOOR_E2M1)
    byte = ue8m0.to_byte(ue8m0.exponent_e2m1(amax))
    codes = e2m1.encode(groups / ue8m0.exp2(ue8m0.byte_exponent(byte)).unsqueeze(-1))
    return e2m1.pack(codes.view(rows, columns)), byte.view(torch.float8_e8m0fnu)


def _whole(weight: Tensor, group: int) -> tuple[int, int]:
    rows, columns = weight.shape
    if columns % group:
        raise ValueError(f"{columns} inputs are not whole groups of {group}; this format cannot hold them")
    return rows, columns
