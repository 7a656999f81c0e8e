"""A copy of what one request owns, equal whatever the chunks in which it came about."""

from __future__ import annotations

import ctypes
import hashlib

import torch
from torch import Tensor

from dsv4core.cache.rows import read_rows, row_slots
from dsv4core.cache.specs import CacheSpec, layout_of, owned_rows


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
    records = read_rows(spec, storage, row_slots(table.to(storage.device), start, end, spec.rows))
    place = torch.arange(start - first * spec.rows, end - first * spec.rows, device=storage.device)
    layout_of(spec).write(pages, place, records, spec.rows)
    return pages


def sha256(pages: Tensor) -> str:
    """Return the hex sha256 of a tensor's bytes, row after row."""
    data = pages.cpu().contiguous()
    size = data.numel() * data.element_size()
    # A view on the bytes: going through a list or numpy would copy, or need numpy.
    view = (ctypes.c_ubyte * size).from_address(data.data_ptr()) if size else b""
    return hashlib.sha256(view).hexdigest()
