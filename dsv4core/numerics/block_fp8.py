"""e4m3 weights with one scale per 128 x 128 block: how DeepSeek's checkpoints store projections."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv4core.numerics import e4m3, ue8m0

BLOCK = 128
AMAX_FLOOR = 1e-10  # a block of zeros still gets a normal scale


def scale_shape(rows: int, columns: int) -> tuple[int, int]:
    """Blocks down and across; the last ones may be cut off by the matrix."""
    return -(-rows // BLOCK), -(-columns // BLOCK)


def scale_values(scales: Tensor) -> Tensor:
    """Scales as f32: f32 itself, e4m3 decoded, UE8M0 bytes (u8 or float8_e8m0fnu) as powers of two."""
    if scales.dtype == torch.float32:
        return scales
    if scales.dtype == torch.float8_e4m3fn:
        return e4m3.decode(scales.view(torch.uint8))
    return ue8m0.exp2(ue8m0.byte_exponent(scales.view(torch.uint8)))


def dequantise(codes: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix; exact in bf16 too where scales are powers of two.

    Shapes: codes e4m3 or u8 [out, in], scales [ceil(out/128), ceil(in/128)] f32, or UE8M0 as u8 or
    float8_e8m0fnu -> dtype [out, in].
    """
    rows, columns = codes.shape
    # torch's own cast: widening is exact, and twice as fast as a table of the 256 values.
    values = codes.view(torch.float8_e4m3fn)
    factor = scale_values(scales)
    out = torch.empty(rows, columns, dtype=dtype, device=codes.device)
    across = factor.repeat_interleave(BLOCK, 1)[:, :columns]
    for start in range(0, rows, BLOCK):
        part = slice(start, start + BLOCK)
        torch.mul(values[part].float(), across[start // BLOCK], out=out[part])
    return out


def quantise(weight: Tensor, scale: str) -> tuple[Tensor, Tensor]:
    """Codes and scales: amax / 448 per block, `scale` "f32", or "ue8m0" rounded up to a power of two.

    Shapes: bf16 or f32 [out, in] -> float8_e4m3fn [out, in], f32 or float8_e8m0fnu [ceil(out/128),
    ceil(in/128)].
    """
    if scale not in ("f32", "ue8m0"):
        raise ValueError(f"scale {scale!r} is not known; type 'ue8m0' or 'f32'")
    rows, columns = weight.shape
    padded = F.pad(weight.float(), (0, -columns % BLOCK, 0, -rows % BLOCK))
    down, across = scale_shape(rows, columns)
    blocks = padded.view(down, BLOCK, across, BLOCK)
    amax = blocks.abs().amax(dim=(1, 3)).clamp(min=AMAX_FLOOR)
    stored = factor = amax / e4m3.MAX
    if scale == "ue8m0":
        byte = ue8m0.to_byte(ue8m0.exponent_e4m3(amax))
        stored, factor = byte.view(torch.float8_e8m0fnu), ue8m0.exp2(ue8m0.byte_exponent(byte))
    codes = e4m3.encode(blocks / factor.view(down, 1, across, 1)).view(padded.shape)
    return codes[:rows, :columns].contiguous().view(torch.float8_e4m3fn), stored
