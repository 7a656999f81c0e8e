"""Lists and pages as aiter takes them: ragged lists over pools of rows."""

from __future__ import annotations

import torch
from torch import Tensor

NEVER = 1e30
"""Sinks are kept within this, which acts as infinity does; aiter computes inf - inf for infinite ones."""


def ragged(listed: Tensor, lens: Tensor, high: int, least: int = 0) -> tuple[Tensor, Tensor]:
    """A rectangle of lists as one flat list with the place where each row starts.

    What is behind a row's length, negative or >= `high` is left out; a row with fewer than `least` entries is
    filled up with -1, aiter's only sentinel. Shapes: listed i32 [T, K], lens i32 [T] -> i32 [n], i32 [T + 1];
    n is a bound that depends on shapes alone, so nothing waits for the device.
    """
    tokens, width = listed.shape
    column = torch.arange(width, device=listed.device)
    live = (column < lens.unsqueeze(1)) & (listed >= 0) & (listed < high)
    before = live.cumsum(1, dtype=torch.int32)
    sizes = (before[:, -1] if width else lens.new_zeros(tokens)).clamp(min=least)
    starts = torch.nn.functional.pad(sizes.cumsum(0, dtype=torch.int32), (1, 0))
    room = tokens * max(width, least)
    flat = torch.full((room + 1,), -1, dtype=torch.int32, device=listed.device)
    place = torch.where(live, starts[:-1].unsqueeze(1) + before - 1, room)  # the last cell takes the rest
    flat.scatter_(0, place.flatten().long(), listed.flatten().int())
    return flat[:room], starts


def blocks(pages: Tensor, rows: int, layout: str) -> Tensor:
    """Pages as aiter's block cache on gfx950. Shapes: u8 [N, B] -> u8 [N, rows, 584] or bf16 [N, rows, 512].

    584 is a size, not the record: aiter, like us, finds the scales behind all rows of a page.
    """
    if layout == "bf16_row":
        pages, width = pages[:, : rows * 1024].view(torch.bfloat16), 512
    else:
        width = 584
    return pages.as_strided((pages.shape[0], rows, width), (pages.stride(0), width, 1))


def pool(pages: Tensor, rows: int) -> Tensor:
    """bf16 rows of all pages as a pool of page size 1. Shapes: u8 [N, B] -> bf16 [n, 512].

    Rows between pages belong to somebody else and are never listed; `pool_rows` counts them.
    """
    step = pool_rows(pages)
    flat = pages[:, : rows * 1024].view(torch.bfloat16)
    count = (pages.shape[0] - 1) * step + rows if pages.shape[0] else 0
    return flat.as_strided((count, 512), (512, 1))


def pool_rows(pages: Tensor) -> int:
    """Rows of the pool from one page to the next."""
    return pages.stride(0) // 1024


def pool_slots(slots: Tensor, rows: int, step: int) -> Tensor:
    """Slots (page * rows + row) as rows of the pool (page * step + row); negative ones stay negative."""
    if rows == step:
        return slots
    page = slots.div(rows, rounding_mode="floor")
    return torch.where(slots < 0, slots, page * step + slots - page * rows)
