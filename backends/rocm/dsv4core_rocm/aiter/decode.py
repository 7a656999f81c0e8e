"""`sparse_decode` through aiter's `pa_decode_sparse`: packed pages on gfx950, elsewhere bf16 pools."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dsv4core.providers import Answer, Call, Provider
from dsv4core_rocm.aiter import lists
from dsv4core_rocm.aiter.partials import Part, join
from dsv4core_rocm.gfx import Gfx

BUFFER = 2**31
"""Bytes that a 32-bit buffer offset reaches; aiter's own guard covers the cache, not queries and results."""
SPLITS = 2  # the fewest that leave parts behind
PACKED = ("fp8_ds_mla", "bf16_row")
Source = tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]  # cache, indices, starts, the second cache's
PARTIAL_LEAST = 128  # every split of a row of the portable kernel gets a tile, so no part stays unwritten


@dataclass(frozen=True)
class Decode:
    """The adapter for one device."""

    gfx: Gfx
    function: Callable[..., Any]

    @property
    def packed(self) -> bool:
        """Whether aiter reads pages as they lie: its gfx950 kernel does."""
        return self.gfx.name == "gfx950"

    def supports(self, call: Call) -> Answer:
        """True, or what does not fit."""
        if call["q"].dtype != torch.bfloat16 or call["out"].dtype != torch.bfloat16:
            return f"aiter decodes bf16 queries, these are {call['q'].dtype}"
        if not call["q"].shape[0]:
            return "there is no token"
        tokens, heads, width = call["q"].shape
        padded = -(-heads // 16) * 16
        largest = max(reach(call["q"]) * 2, reach(call["out"]) * 2, SPLITS * tokens * padded * width * 4)
        if largest >= BUFFER:
            return f"queries, results or parts take {largest} bytes, 32-bit offsets reach {BUFFER}"
        caches = [("layout", call["swa_cache"], call["swa_rows"])]
        if call["extra_cache"] is not None:
            caches.append(("extra_layout", call["extra_cache"], call["extra_rows"]))
        for name, pages, rows in caches:
            wrong = self._cache(call[name], pages, rows)
            if wrong:
                return f"{name}: {wrong}"
        return True

    def _cache(self, layout: str, pages: Tensor, rows: int) -> str:
        if not pages.shape[0]:
            return "the cache has no page"
        if self.packed and layout not in PACKED:
            return f"{layout} is not what aiter reads on gfx950: {' or '.join(PACKED)}"
        if not self.packed and layout != "bf16_row":
            return f"{layout}: on {self.gfx.name} aiter reads pools of bf16_row (packed pages need gfx950)"
        if pages.data_ptr() % 16 or pages.stride(0) % 16:
            return "pages do not start at multiples of 16 bytes"
        if self.packed:
            return ""
        if pages.stride(0) % 1024:
            return f"a page every {pages.stride(0)} bytes is no whole number of 1024-byte rows"
        if pages.shape[0] * lists.pool_rows(pages) >= 2**31:
            return "rows of the pool do not fit 32-bit indices"
        return ""

    def run(self, call: Call) -> Tensor:
        """The op: output and the log of the sums, from aiter's parts."""
        sink = call["attn_sink"].clamp(-lists.NEVER, lists.NEVER)
        least = 0 if self.packed else PARTIAL_LEAST
        parts = [self._part(call, sink, source) for source in self._sources(call, least)]
        return join(parts, sink, call["out"])

    def direct(self, call: Call) -> None:
        """The output alone: one call where aiter reads everything in one, else as `run`."""
        if not self.packed and call["extra_cache"] is not None:
            self.run(call)
            return
        least = 0 if self.packed else 1  # the portable kernel leaves the output of an empty row as it was
        ((main, indices, indptr, extra),) = self._sources(call, least)
        result = self.function(
            call["q"], main, indices, indptr, call["attn_sink"].clamp(-lists.NEVER, lists.NEVER),
            call["scale"], has_invalid=least > 0, **extra,
        )  # fmt: skip
        call["out"].copy_(result)

    def _part(self, call: Call, sink: Tensor, source: Source) -> Part:
        main, indices, indptr, extra = source
        return self.function(
            call["q"], main, indices, indptr, sink, call["scale"], kv_splits=SPLITS,
            has_invalid=not self.packed, skip_reduce=True, **extra,
        )  # fmt: skip

    def _sources(self, call: Call, least: int) -> list[Source]:
        """Cache, indices, starts and the second cache's arguments of every call of aiter that is needed."""
        swa = call["swa_cache"], call["swa_slots"], call["swa_lens"], call["swa_rows"]
        more = call["extra_cache"], call["extra_slots"], call["extra_lens"], call["extra_rows"]
        if not self.packed:
            both = [swa] if call["extra_cache"] is None else [swa, more]
            return [(*_pool(*source, least), {}) for source in both]
        main = _blocks(*swa, call["layout"])
        extra: dict[str, Tensor] = {}
        if call["extra_cache"] is not None:
            cache, indices, indptr = _blocks(*more, call["extra_layout"])
            extra = {"extra_cache": cache, "extra_indices": indices, "extra_indptr": indptr}
        return [(*main, extra)]


def _pool(pages: Tensor, slots: Tensor, lens: Tensor, rows: int, least: int) -> tuple[Tensor, Tensor, Tensor]:
    """A pool of page size 1 and lists of its rows."""
    step = lists.pool_rows(pages)
    valid = torch.where(slots < pages.shape[0] * rows, slots, -1)
    found = lists.pool_slots(valid, rows, step)
    return lists.pool(pages, rows), *lists.ragged(found, lens, pages.shape[0] * step, least)


def _blocks(
    pages: Tensor, slots: Tensor, lens: Tensor, rows: int, layout: str
) -> tuple[Tensor, Tensor, Tensor]:
    """A block cache and lists of its slots; the kernel takes empty rows."""
    return lists.blocks(pages, rows, layout), *lists.ragged(slots, lens, pages.shape[0] * rows)


def reach(tensor: Tensor) -> int:
    """Elements from the first to the last one."""
    if not tensor.numel():
        return 0
    return 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))


def provider(gfx: Gfx, function: Callable[..., Any]) -> Provider:
    """aiter's decode as a provider of `sparse_decode`."""
    decode = Decode(gfx, function)
    return Provider("aiter pa_decode_sparse", 10, decode.supports, decode.run, decode.direct)
