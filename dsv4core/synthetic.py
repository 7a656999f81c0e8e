"""Synthetic tensors from a counter-based integer hash: the same bits on every device and torch version."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
LAST_SHIFT = 31
SUM_STD = math.sqrt((65536**2 - 1) / 3)  # of four 16-bit uniforms added
SUM_MEAN = 2 * 65535
GRID_STD = 36.0  # four uniforms stay within 3.47 standard deviations, so 36 steps keep |n| below 127
FRACTION = 24
CHUNK = 1 << 15  # temporaries stay in a CPU's cache, and torch does not split so few over threads


def _signed(value: int) -> int:
    """The int64 with the low 64 bits of `value`, since torch takes no unsigned constants."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _hash(counter: Tensor, key: int) -> Tensor:
    """SplitMix64 of counters. Shapes: i64 [n] -> i64 [n]."""
    z = counter.mul(_signed(GOLDEN)).add_(key)
    for shift, factor in MIX:
        z = z.bitwise_xor_((z >> shift) & ((1 << (64 - shift)) - 1)).mul_(_signed(factor))
    return z.bitwise_xor_((z >> LAST_SHIFT) & ((1 << (64 - LAST_SHIFT)) - 1))


def grid_step(std: float) -> float:
    """The finest power of two on which normal values of that deviation are integers |n| <= 127 times it."""
    return 2.0 ** -math.floor(math.log2(GRID_STD / std))


def hash_normal(
    shape: tuple[int, ...],
    seed: int,
    stream: str,
    std: float,
    step: float | None = None,
    *,
    mean: float = 0.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """About normal values on the grid n * step, where n is an integer and |n - mean/step| <= 127.

    `step` is a power of two (default `grid_step(std)`) of at least std / 36; others raise ValueError. Without
    a mean bf16 holds these values exactly, so a matmul of them with small grid values is exact in fp32 in any
    order of summation. Values depend on `seed`, the name `stream` and their index only.
    Shapes: -> dtype [*shape].
    """
    step = grid_step(std) if step is None else step
    if math.frexp(step)[0] != 0.5 or std / step > GRID_STD:
        raise ValueError(f"step {step} is not a power of two of at least {std} / {GRID_STD:g}")
    key = _signed(int.from_bytes(hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:8], "little"))
    factor, offset = round(std / step / SUM_STD * 2**FRACTION), round(mean / step)
    out = torch.empty(shape, dtype=dtype, device=device)
    flat = out.view(-1)
    for start in range(0, flat.numel(), CHUNK):
        stop = min(start + CHUNK, flat.numel())
        z = _hash(torch.arange(start, stop, dtype=torch.int64, device=device), key)
        total = (z & 0xFFFF) - SUM_MEAN
        for shift in (16, 32, 48):
            total += (z >> shift) & 0xFFFF
        n = total.mul_(factor).add_(1 << (FRACTION - 1)).bitwise_right_shift_(FRACTION).add_(offset)
        flat[start:stop] = n.to(torch.float32).mul_(step)
    return out


def hash_embedding(
    tokens: Tensor, width: int, seed: int, *, vocabulary: int = 256, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """Rows of a seeded table, unit variance on a grid of 1/16, by token.

    Shapes: tokens i64 or u8 [T], all below `vocabulary` -> dtype [T, width].
    """
    shape, device = (vocabulary, width), tokens.device
    table = hash_normal(shape, seed, "embedding", 1.0, 1 / 16, dtype=dtype, device=device)
    return table[tokens.to(torch.int64)]
