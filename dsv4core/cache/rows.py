"""Rows as records: read from and written to the pages of a cache, whatever form ops take them in."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4core.cache.specs import CacheSpec, layout_of
from dsv4core.cache.steps import Copies


def row_slots(table: Tensor, start: int, end: int, rows: int) -> Tensor:
    """Return the slots of logical rows start:end. Shapes: table i32 [W] -> i64 [end - start]."""
    row = torch.arange(start, end, device=table.device)
    return table.to(torch.int64)[row // rows] * rows + row % rows


def read_rows(spec: CacheSpec, storage: Tensor, slots: Tensor) -> Tensor:
    """Return the records at slots >= 0. Shapes: storage as ops take it, slots i64 [n] -> u8 [n, record]."""
    if spec.dtype == "f32":
        return storage[slots // spec.rows, slots % spec.rows].contiguous().view(torch.uint8)
    return layout_of(spec).read(storage, slots, spec.rows)


def write_rows(spec: CacheSpec, storage: Tensor, slots: Tensor, records: Tensor) -> None:
    """Put records at slots >= 0, exactly those bytes. Shapes: slots i64 [n], records u8 [n, record]."""
    if spec.dtype == "f32":
        storage[slots // spec.rows, slots % spec.rows] = records.contiguous().view(torch.float32)
    else:
        layout_of(spec).write(storage, slots, records, spec.rows)


def stage_copy(spec: CacheSpec, storage: Tensor, copies: Copies) -> tuple[Tensor, Tensor, Tensor]:
    """Return what copying the rows of pages (from, to) takes: `used[target] = records`, and no more memory.

    Bytes behind the rows are not among them.
    """
    source, target = torch.tensor(copies, dtype=torch.int64, device=storage.device).unbind(1)
    used = storage if spec.dtype == "f32" else storage[:, : spec.payload_bytes]
    return used, target, used[source]
