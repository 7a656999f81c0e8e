"""A copy of what one request owns, equal whatever the chunks in which it came about."""

from __future__ import annotations

import ctypes
import hashlib

import torch
from torch import Tensor

from dsv4core.cache.specs import CacheSpec, layout_of


def owned_rows(spec: CacheSpec, length: int) -> tuple[int, int]:
    """Return the logical rows start:end that belong to a request of `length` tokens.

    Growing groups: every entry that `length` tokens complete. Sliding groups: the newest `spec.sliding`
    tokens. Older rows may or may not be in memory, depending on the steps taken, so they do not count.
    """
    rows = length // spec.tokens_per_row
    return (0 if spec.sliding is None else max(rows - spec.sliding, 0)), rows


def copy_pages(spec: CacheSpec, storage: Tensor, table: Tensor, length: int) -> Tensor:
    """Return the pages of a request with every row it does not own, and the bytes behind the rows, zero.

    Shapes: storage as ops take it, table i32 [W] of the request -> u8 [pages, page_bytes], beginning with the
    page of the oldest owned row.
    """
    start, end = owned_rows(spec, length)
    first, stop = start // spec.rows, -(-end // spec.rows)
    pages = torch.zeros((stop - first, spec.page_bytes), dtype=torch.uint8, device=storage.device)
    if start == end:
        return pages
    row = torch.arange(start, end, device=storage.device)
    page = table.to(device=storage.device, dtype=torch.int64)[row // spec.rows]
    place = row - first * spec.rows
    if spec.dtype == "f32":
        width = 4 * spec.row_width
        record = storage[page, row % spec.rows].contiguous().view(torch.uint8)
        target = pages[:, : spec.rows * width].view(stop - first, spec.rows, width)
        target[place // spec.rows, place % spec.rows] = record
    else:
        layout = layout_of(spec)
        record = layout.read(storage, page * spec.rows + row % spec.rows, spec.rows)
        layout.write(pages, place, record, spec.rows)
    return pages


def sha256(pages: Tensor) -> str:
    """Return the hex sha256 of a tensor's bytes, row after row."""
    data = pages.cpu().contiguous()
    size = data.numel() * data.element_size()
    # A view on the bytes: going through a list or numpy would copy, or need numpy.
    view = (ctypes.c_ubyte * size).from_address(data.data_ptr()) if size else b""
    return hashlib.sha256(view).hexdigest()
