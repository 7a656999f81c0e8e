"""Attention of single tokens straight over the pages: window list and compressed list, one softmax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.layout import CacheLayout
from dsv4core.ops._attend import ATTENTION, attend
from dsv4core.ops._contract import ACTIVATION, F32, I32, TensorSpec, check_listed, page, spec
from dsv4core.ops._op import op
from dsv4core.ops._rows import blocks, listed, page_layout

NAME = "sparse_decode"
LOADED_ROWS = 2560  # at a time: one call for several tokens costs little more than for one


def _fake(
    q: Tensor, swa_cache: Tensor, swa_slots: Tensor, swa_lens: Tensor, extra_cache: Tensor | None,
    extra_slots: Tensor | None, extra_lens: Tensor | None, attn_sink: Tensor, out: Tensor, *,
    scale: float, swa_rows: int, extra_rows: int, layout: str, extra_layout: str,
) -> Tensor:  # fmt: skip
    return attn_sink.new_empty(q.shape[0], q.shape[1])


OVER_PAGES: Mapping[str, TensorSpec] = {
    "q": spec("T H 512", *ACTIVATION),
    "swa_cache": page(rows="swa_rows"),
    "swa_slots": spec("T K", I32, strides="any"),
    "swa_lens": spec("T", I32, strides="any"),
    "extra_cache": page(shape="NE BE", layout="extra_layout", rows="extra_rows", optional=True),
    "extra_slots": spec("T KE", I32, optional=True, strides="any"),
    "extra_lens": spec("T", I32, optional=True, strides="any"),
    "attn_sink": spec("H", F32, finite=False),
}
"""Queries, both caches with their lists, sinks: what every op that decodes over pages takes first."""


def check_over_pages(op: str, a: Mapping[str, Any], dims: Mapping[str, int]) -> None:
    """Numbers inside the arguments of `OVER_PAGES`."""
    check_listed(
        op, "swa_slots", a["swa_slots"], a["swa_lens"], "swa_lens", dims["N"] * a["swa_rows"], "slots"
    )
    if a["extra_cache"] is not None and a["extra_slots"] is not None and a["extra_lens"] is not None:
        high = dims["NE"] * a["extra_rows"]
        check_listed(op, "extra_slots", a["extra_slots"], a["extra_lens"], "extra_lens", high, "slots")
    if bool(a["attn_sink"].isnan().any()):
        raise OpArgumentError(op, "attn_sink", "numbers, -inf or +inf", "NaN")


def extra_list(op: str, slots: Tensor | None, lens: Tensor | None) -> tuple[Tensor, Tensor]:
    """The list of an `extra_cache` that is there. Raises OpArgumentError for half of one."""
    if slots is None or lens is None:
        lacking = "extra_slots" if slots is None else "extra_lens"
        raise OpArgumentError(op, lacking, "a tensor, since there is an extra_cache", "None")
    return slots, lens


def _values(a: Mapping[str, Any], dims: Mapping[str, int]) -> None:
    check_over_pages(NAME, a, dims)


@op(
    fake=_fake,
    mutates=("out",),
    tolerance=ATTENTION,
    values=_values,
    tensors={**OVER_PAGES, "out": spec("T H 512", *ACTIVATION, finite=False)},
)
def sparse_decode(
    q: Tensor, swa_cache: Tensor, swa_slots: Tensor, swa_lens: Tensor, extra_cache: Tensor | None,
    extra_slots: Tensor | None, extra_lens: Tensor | None, attn_sink: Tensor, out: Tensor, *,
    scale: float, swa_rows: int, extra_rows: int, layout: str, extra_layout: str,
) -> Tensor:  # fmt: skip
    """Attend to the listed rows of both caches; K and V are the same row.

    Shapes: q bf16 [T, H, 512], swa_cache u8 [N, B], swa_slots i32 [T, Ks], swa_lens i32 [T]; extra_cache,
    extra_slots and extra_lens the same for the compressed cache, or None; attn_sink f32 [H] (-inf: none,
    +inf: output 0), out bf16 [T, H, 512] (written) -> lse f32 [T, H], natural log, without the sink, +inf for
    an empty row (output 0). A negative slot and everything behind its length is skipped, a slot behind the
    last page raises in checked mode and is skipped otherwise; order has no meaning, duplicates count twice.
    """
    main = page_layout(NAME, layout, rows=swa_rows, pages=swa_cache, families=("main",))
    sources = [(main, swa_cache, swa_rows)]
    lists = [listed(swa_slots, swa_lens, swa_cache.shape[0] * swa_rows)]
    if extra_cache is not None:
        extra_slots, extra_lens = extra_list(NAME, extra_slots, extra_lens)
        extra = page_layout(
            NAME,
            extra_layout,
            rows=extra_rows,
            pages=extra_cache,
            families=("main",),
            argument="extra_layout",
        )
        sources.append((extra, extra_cache, extra_rows))
        lists.append(listed(extra_slots, extra_lens, extra_cache.shape[0] * extra_rows))
    lse = attn_sink.new_empty(q.shape[0], q.shape[1])
    listed_rows = swa_slots.shape[1] + (0 if extra_slots is None else extra_slots.shape[1])
    for part in blocks(q.shape[0], LOADED_ROWS // max(listed_rows, 1)):
        loaded = [_load(source, slots[part]) for source, slots in zip(sources, lists, strict=True)]
        for t, keys in zip(range(part.start, part.stop), zip(*loaded, strict=True), strict=True):
            attend(q[t], torch.cat(keys).float(), attn_sink, scale, out[t], lse[t])
    return lse


def _load(source: tuple[CacheLayout, Tensor, int], lists: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The rows that some tokens list, as values. Shapes: i64 [n] each -> [n, 512] each."""
    layout, cache, rows = source
    slots = torch.cat(list(lists))
    values = cache.new_empty(slots.shape[0], layout.values, dtype=layout.dtype)
    layout.load(values, cache, slots, rows)
    return torch.split(values, [len(some) for some in lists])
