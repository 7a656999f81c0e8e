"""Copying records between pages and row tensors: views and 64-bit indices, no arithmetic on bytes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dsv4core.layout.rounding import packed
from dsv4core.slots import slot_rows

WORDS = ((8, torch.int64), (4, torch.int32), (2, torch.int16))


def parts(pages: Tensor, rows: int, row_bytes: int, tail_bytes: int) -> tuple[Tensor, ...]:
    """Views [N, rows, row_bytes] and, if tail_bytes, [N, rows, tail_bytes] of pages [N, B]."""
    count, start = pages.shape[0], rows * row_bytes
    front = pages[:, :start].view(count, rows, row_bytes)
    if tail_bytes == 0:
        return (front,)
    return (front, pages[:, start : start + rows * tail_bytes].view(count, rows, tail_bytes))


def _wide(view: Tensor) -> Tensor:
    """The same bytes in the widest word that offset and strides allow: fewer, larger copies."""
    places = (view.storage_offset(), view.shape[-1], *view.stride()[:-1])
    for size, dtype in WORDS:
        if all(place % size == 0 for place in places):
            return view.view(dtype)
    return view


def _pieces(views: tuple[Tensor, ...], record: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each view with its columns of the records."""
    start = 0
    for view in views:
        stop = start + view.shape[-1]
        yield view, record[..., start:stop]
        start = stop


def _empty(views: tuple[Tensor, ...], shape: torch.Size) -> Tensor:
    """Room for records of that shape."""
    return views[0].new_empty((*shape, sum(view.shape[-1] for view in views)))


def read(views: tuple[Tensor, ...], slots: Tensor, rows: int) -> Tensor:
    """Records at slots >= 0, the views' bytes side by side. Shapes: slots any -> u8 [..., sum of bytes]."""
    parts = [slot_rows(view, slots) for view in views]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def write(views: tuple[Tensor, ...], slots: Tensor, record: Tensor, rows: int) -> None:
    """Put records [n, sum of bytes] at slots [n] >= 0."""
    index = slots.to(torch.int64)
    page, row = index // rows, index % rows
    for view, piece in _pieces(views, record):
        target = _wide(view)
        target[page, row] = packed(piece).view(target.dtype)


def fill(views: tuple[Tensor, ...], record: Tensor) -> None:
    """Put records [N, rows, sum of bytes] into all rows."""
    for view, piece in _pieces(views, record):
        view.copy_(piece)


def everything(views: tuple[Tensor, ...]) -> Tensor:
    """All records, as a copy. Shapes: -> u8 [N, rows, sum of bytes]."""
    out = _empty(views, views[0].shape[:-1])
    for view, piece in _pieces(views, out):
        piece.copy_(view)
    return out
