"""Memory of inputs: pages inside poisoned storages, slots, block tables, other views of the same numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsv4core_conformance.inputs.numbers import Numbers, integers
from dsv4core_conformance.reference import rows as reference

POISON = 0xA5
Place = Mapping[str, int]
"""`lead` bytes before the first page and `gap` bytes behind every page, all of them poison."""
Slots = Literal["permuted", "sequential", "holes", "negative", "short", "empty", "none"]


def pages(layout: str, count: int, rows: int, place: Place | None = None, fill: int = POISON) -> Tensor:
    """Pages of poison inside a storage of poison. Shapes: -> u8 [count, page bytes] with a free stride(0)"""
    return raw_pages(count, reference.page_bytes(layout, rows), place, fill)


def raw_pages(count: int, size: int, place: Place | None = None, fill: int = POISON) -> Tensor:
    """The same for pages of `size` bytes. Shapes: -> u8 [count, size]"""
    lead, gap = (place or {}).get("lead", 0), (place or {}).get("gap", 0)
    storage = torch.full((lead + count * (size + gap),), fill, dtype=torch.uint8)
    return storage.as_strided((count, size), (size + gap, 1), lead)


def states(
    count: int, rows: int, width: int, place: Place | None = None, fill: float | None = None
) -> Tensor:
    """State pages inside poison; `lead` and `gap` count floats here. Shapes: -> f32 [count, rows, 2 width]"""
    lead, gap = (place or {}).get("lead", 0), (place or {}).get("gap", 0)
    stride = 2 * rows * width + gap
    storage = torch.full((4 * (lead + count * stride),), POISON, dtype=torch.uint8).view(torch.float32)
    if fill is not None:
        storage.fill_(fill)
    return storage.as_strided((count, rows, 2 * width), (stride, 2 * width, 1), lead)


def put(
    target: Tensor, layout: str, rows: int, slots: NDArray[np.integer], values: NDArray[np.floating]
) -> None:
    """Write rows into pages with the reference's encoder. Shapes: u8 [N, B], [n], [n, width]"""
    reference.write(layout, target.numpy(), np.asarray(slots, dtype=np.int64), rows, values)


def slots(source: Numbers, tokens: int, capacity: int, pattern: Slots = "permuted") -> Tensor:
    """Slots of `tokens` tokens among `capacity`, no slot twice.

    "holes" and "negative" skip tokens by -1 and by other negative numbers, "short" has no slot for the last
    third of the tokens, "empty" skips every token, "none" has length 0. Shapes: -> i64 [<= tokens]
    """
    if tokens > capacity:
        raise ValueError(f"{tokens} tokens do not fit into {capacity} slots")
    found = np.arange(tokens) if pattern == "sequential" else source.permutation(capacity)[:tokens]
    if pattern == "holes":
        found[::3] = -1
    elif pattern == "negative":
        found[::2] = np.resize([-1, -2, -65, -(2**31), -(2**40)], len(found[::2]))
    elif pattern == "short":
        found = found[: tokens - tokens // 3 - 1]
    elif pattern == "empty":
        found[:] = -1
    elif pattern == "none":
        found = found[:0]
    return integers(found)


def block_table(source: Numbers, lengths: Sequence[int], rows: int, count: int, spare: int = 1) -> Tensor:
    """Hashed physical pages for requests of `lengths` rows, -1 behind them; no page twice.

    `spare` columns stay unmapped. Shapes: -> i32 [requests, widest + spare]
    """
    need = [-(-length // rows) for length in lengths]
    if sum(need) > count:
        raise ValueError(f"{sum(need)} pages are needed, there are {count}")
    order = source.permutation(count)
    table = np.full((len(lengths), max(need, default=0) + spare), -1)
    at = 0
    for b, pages_of in enumerate(need):
        table[b, :pages_of] = order[at : at + pages_of]
        at += pages_of
    return integers(table, torch.int32)


def layered(tensor: Tensor, layer: int = 1, layers: int = 3, lead: int = 16, gap: int = 48) -> Tensor:
    """The same pages as those of layer `layer` in a storage where every block holds a page of each layer.

    `lead` and `gap` count elements. Shapes: [N, ...] contiguous per page -> the same, stride(0) of all layers
    """
    page = tensor[0].numel() if len(tensor) else 1
    stride = page * layers + gap
    parent = filled(torch.empty(lead + max(len(tensor), 1) * stride, dtype=tensor.dtype))
    inner = tuple(torch.empty(tensor.shape[1:], device="meta").stride())
    view = parent.as_strided(tensor.shape, (stride, *inner), lead + layer * page)
    view.copy_(tensor)
    return view


def filled(tensor: Tensor) -> Tensor:
    """Poison (bytes 0xA5) in a contiguous tensor of any type. Shapes: any"""
    tensor.view(-1).view(torch.uint8).fill_(POISON)
    return tensor


def spoiled(tensor: Tensor) -> Tensor:
    """All bits set in a contiguous tensor: NaN, the largest byte, or -1. Shapes: any"""
    tensor.view(-1).view(torch.uint8).fill_(0xFF)
    return tensor


def column_slice(tensor: Tensor, before: int = 8, behind: int = 24) -> Tensor:
    """The same numbers as columns of a wider tensor with all bits set around them. Shapes: any -> the same"""
    parent = spoiled(
        torch.empty((*tensor.shape[:-1], before + tensor.shape[-1] + behind), dtype=tensor.dtype)
    )
    view = parent[..., before : before + tensor.shape[-1]]
    view.copy_(tensor)
    return view


def row_slice(tensor: Tensor, step: int = 2) -> Tensor:
    """The same numbers as every `step`-th row of a longer tensor. Shapes: any -> the same"""
    parent = spoiled(torch.empty((max(tensor.shape[0] * step, 1), *tensor.shape[1:]), dtype=tensor.dtype))
    view = parent[: tensor.shape[0] * step : step]
    view.copy_(tensor)
    return view


def transposed(tensor: Tensor) -> Tensor:
    """The same numbers with the last two strides exchanged: stride(-1) is not 1. Shapes: any -> the same"""
    return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)


def every_second(tensor: Tensor) -> Tensor:
    """The same numbers as every second column of a wider tensor. Shapes: [..., n] -> the same, stride 2"""
    parent = spoiled(torch.empty((*tensor.shape[:-1], 2 * tensor.shape[-1]), dtype=tensor.dtype))
    view = parent[..., ::2]
    view.copy_(tensor)
    return view
