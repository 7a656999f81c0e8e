"""Row addressing shared by the portable bodies: live slots, bounded blocks of work, checked page layouts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor

from dsv4core.errors import LayoutError, OpArgumentError
from dsv4core.layout import CacheLayout, get_layout, layouts


def live_rows(slots: Tensor) -> tuple[Tensor, Tensor]:
    """Rows whose slot is not negative, and their slots. Shapes: i64 [T] -> i64 [n], i64 [n]."""
    rows = (slots >= 0).nonzero().squeeze(1)
    return rows, slots[rows].long()


def listed(rows: Tensor, lens: Tensor, end: int) -> tuple[Tensor, ...]:
    """Rows in [0, end) before the length of every token. Shapes: i32 [T, K], i32 [T] -> i64 [n] each."""
    column = torch.arange(rows.shape[1], device=rows.device)
    wide = rows.long()
    legal = (wide >= 0) & (wide < end) & (column < lens.unsqueeze(1))
    return torch.split(wide.masked_select(legal), ints(legal.sum(1)))


def by_block(x: Tensor, size: int) -> Tensor:
    """The last dimension cut into blocks. Shapes: [..., n * size] -> [..., n, size]."""
    return x.reshape(*x.shape[:-1], x.shape[-1] // size, size)


def ints(tensor: Tensor) -> list[int]:
    """The numbers of a vector on the host; torch's own `tolist` has no element type. Shapes: i32 [n]."""
    return cast("list[int]", tensor.tolist())  # pyright: ignore[reportUnknownMemberType]


BLOCK_BYTES: Mapping[str, int] = {"cpu": 1 << 20}
BLOCK_BYTES_ELSEWHERE = 16 << 20
"""Bytes of one temporary of a block of rows. A processor's cache should hold the few that live at a time;
where every step is a launch, few large blocks are better."""


def block_rows(row_bytes: int, device: torch.device) -> int:
    """Rows of a block whose temporaries take `row_bytes` each."""
    return BLOCK_BYTES.get(device.type, BLOCK_BYTES_ELSEWHERE) // row_bytes


def blocks(total: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` rows, at least one, that cover `total`."""
    for start in range(0, total, max(size, 1)):
        yield slice(start, min(start + max(size, 1), total))


def page_layout(
    op: str, layout: str, *, rows: int, pages: Tensor, families: tuple[str, ...], argument: str = "layout",
    rows_argument: str = "rows",
) -> CacheLayout:  # fmt: skip
    """The layout behind an id, after checking its family and that the page tensor can hold `rows` rows."""
    try:
        found = get_layout(layout)
    except LayoutError:
        known = ", ".join(known.id for known in layouts() if known.family in families)
        raise OpArgumentError(op, argument, f"one of {known}", repr(layout)) from None
    if found.family not in families:
        raise OpArgumentError(
            op, argument, f"a layout of family {' or '.join(families)}", f"{layout} ({found.family})"
        )
    if rows < 1:
        raise OpArgumentError(op, rows_argument, ">= 1 rows per page", str(rows))
    if pages.shape[0] and pages.shape[1] < rows * found.record_bytes:
        raise OpArgumentError(
            op, rows_argument,
            f"a page of at least {rows * found.record_bytes} bytes for {rows} rows of {layout}",
            f"{pages.shape[1]} bytes",
        )  # fmt: skip
    return found
