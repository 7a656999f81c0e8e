"""The steps that codecs share: bf16 first (CA1 rule 9), block scales, bytes of wider types."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4core.numerics import ue8m0

# Stands for infinity. The largest bf16 will not do: its e4m3 code is rounded up, and decodes to 2^128.
HUGE = 2.0**127


def finite_bf16(values: Tensor) -> Tensor:
    """Round to bf16 (nearest even); NaN becomes 0, infinity 2^127. Shapes: any -> the same."""
    return values.to(torch.bfloat16).nan_to_num(0.0, HUGE, -HUGE)


def finite_f32(values: Tensor) -> Tensor:
    """Widen to f32; NaN becomes 0, infinity 2^127. Shapes: any -> the same."""
    return values.float().nan_to_num(0.0, HUGE, -HUGE)


def packed(values: Tensor) -> Tensor:
    """A copy without holes, at the start of its own storage.

    Not `.contiguous()`: that keeps a single row as it is, whose stride may forbid a view in another type.
    """
    return values.clone(memory_format=torch.contiguous_format)


def as_bytes(values: Tensor) -> Tensor:
    """The bytes of values, little endian as in memory. Shapes: [..., n] -> u8 [..., n * item size]."""
    return packed(values).view(torch.uint8)


def from_bytes(record: Tensor, dtype: torch.dtype) -> Tensor:
    """The values in bytes, copied. Shapes: u8 [..., n * item size] -> [..., n]."""
    return packed(record).view(dtype)


def in_blocks(values: Tensor, block: int) -> Tensor:
    """Split the last dimension. Shapes: [..., n * block] -> [..., n, block]."""
    return values.reshape(*values.shape[:-1], values.shape[-1] // block, block)


def blocks(values: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Values in blocks, and each block's largest magnitude in f32.

    Shapes: bf16 [..., n * block] -> bf16 [..., n, block], f32 [..., n].
    """
    grouped = in_blocks(values, block)
    magnitude = grouped.view(torch.int16) & 0x7FFF  # ordered like the numbers, and compared faster
    largest = magnitude.amax(dim=-1).clamp_(max=0x7FC0)  # one NaN stands for all
    return grouped, largest.view(torch.bfloat16).float()


def scaled(grouped: Tensor, exponent: Tensor) -> Tensor:
    """Block values times 2^-E, which is exact but for those far below the smallest code.

    Shapes: bf16 [..., n, block], i32 [..., n] -> bf16 [..., n, block].
    """
    return grouped * ue8m0.exp2(-exponent).to(grouped.dtype).unsqueeze(-1)
