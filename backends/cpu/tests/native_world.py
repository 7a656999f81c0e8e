"""Adversarial arguments for the ops: strided pages, holes, every layout, values from zero to overflow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsv4core.layout import get_layout
from dsv4core.numerics import tables
from dsv4core.ops import OPS

MAIN = ("fp8_ds_mla", "fp8_ds_mla_fnuz", "bf16_row", "fp8_row", "f32_row")
INDEX = (
    "index_fp8", "index_fp8_ue8m0x4", "index_fp8_hadamard_f32", "index_mxfp4", "index_mxfp4_hadamard",
    "index_f32",
)  # fmt: skip
BF16, F32, I32 = torch.bfloat16, torch.float32, torch.int32
COS_SIN = tables.cos_sin(160000.0, None, 4096)


class World:
    """Random tensors of one seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def values(self, *shape: int, dtype: torch.dtype = BF16) -> Tensor:
        """Rows of very different magnitude, with zeros of both signs, and ties of the small formats."""
        x = torch.randn(shape, generator=self.generator)
        x = x * torch.exp2(self.ints(-30, 30, *shape[:-1], 1).float())
        kind = self.ints(0, 12, *shape)
        x = torch.where(kind == 0, 0.0, x)
        x = torch.where(kind == 1, -0.0, x)
        x = torch.where(kind == 2, torch.exp2(x.abs().clamp(1e-20, 1e20).log2().round()) * 1.0625, x)
        return x.to(dtype)

    def ints(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator, dtype=dtype)

    def floats(self, *shape: int, dtype: torch.dtype = F32) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(dtype)

    def pages(self, layout: str, rows: int, count: int, *, filled: bool = True) -> Tensor:
        """Pages in a larger allocation: an odd offset in front and a gap behind each."""
        found = get_layout(layout)
        size = found.page_bytes(rows)
        room = torch.full((64 + count * (size + 96),), 0xA5, dtype=torch.uint8)
        pages = room[8 : 8 + count * (size + 96)].view(count, size + 96)[:, :size]
        if filled:
            pages.copy_(found.encode_pages(self.floats(count, rows, found.values)))
        return pages

    def slots(self, tokens: int, rows: int, count: int) -> Tensor:
        """Different slots, some of them negative."""
        slots = torch.randperm(rows * count, generator=self.generator)[:tokens]
        return torch.where(self.ints(0, 5, slots.shape[0]) == 0, -1 - self.ints(0, 3, slots.shape[0]), slots)


def both(native: Any, name: str, make: Any) -> None:
    """Call the op and its body on equal arguments: results and what they wrote must be the same bytes."""
    op, seen = OPS[name], []
    for call in (native, op.body):
        arguments = make()
        result = call(**arguments)
        results = list(result) if isinstance(result, tuple) else [result]
        seen.append([raw(x) for x in (*results, *(whole(arguments[w]) for w in op.mutates))])
    for mine, wanted in zip(*seen, strict=True):
        assert (mine is None) == (wanted is None)
        if mine is not None:
            assert mine.shape == wanted.shape
            assert torch.equal(mine, wanted), f"{int((mine != wanted).sum())} of {mine.numel()} bytes differ"


def whole(tensor: Tensor) -> Tensor:
    """The allocation behind a tensor: bytes around what an op may write must stay."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


def raw(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous().flatten().view(torch.uint8)
