"""`indexer_logits` through `fp8_mqa_logits`, `indexer_topk` through `top_k_per_row_prefill`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dsv4core.layout import get_layout
from dsv4core.providers import Answer, Call, Provider
from dsv4core_rocm.gfx import Gfx

LONGEST_LIST = 2048  # what aiter's ordered emit sorts at once


@dataclass(frozen=True)
class Logits:
    """Scores over one request's entries, gathered into a row of keys: aiter's form for prefill."""

    gfx: Gfx
    function: Callable[..., Any]

    def supports(self, call: Call) -> Answer:
        """True, or what does not fit."""
        q, heads = call["q"], call["q"].shape[1]
        if self.gfx.name not in ("gfx942", "gfx950"):
            return f"aiter scores fp8 on gfx942 and gfx950, this is {self.gfx.name}"
        if call["layout"] != "index_fp8" or q.dtype != torch.float8_e4m3fn:
            return f"aiter takes e4m3 keys with one f32 scale, the layout is {call['layout']}"
        own = get_layout("index_fp8")
        if call["rotate"] != own.rotate or q.shape[2] != own.width or call["q_scales"] is not None:
            return "these queries are not the layout's"  # which the kernel refuses in the contract's words
        if call["block_table"].shape[0] != 1:
            requests = call["block_table"].shape[0]
            return f"{requests} requests: aiter would score every token against the keys of all"
        if heads & (heads - 1):
            return f"{heads} heads are no power of two"
        if not q.shape[0] or not call["max_len"] or not call["block_table"].shape[1]:
            return "there is no token or no entry"
        return True

    def run(self, call: Call) -> Tensor:
        """f32 [T, max_len], -inf at and behind context_lens."""
        keys, scales = request_keys(call["k_cache"], call["block_table"], call["rows"], call["max_len"])
        ends = call["context_lens"].clamp(max=call["max_len"]).contiguous()
        scores = self.function(
            call["q"], keys, scales, call["weights"], torch.zeros_like(ends), ends, clean_logits=True
        )
        return scores.contiguous()


def request_keys(pages: Tensor, table: Tensor, rows: int, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` entries of the only request. Shapes: -> e4m3 [count, 128], f32 [count].

    Entries without a page read page 0: nobody may see them.
    """
    entry = torch.arange(count, device=pages.device).clamp(max=table.shape[1] * rows - 1)
    page = table[0, entry // rows].clamp(min=0).long()
    record = get_layout("index_fp8").read(pages, page * rows + entry % rows, rows)
    keys, scales = record.split_with_sizes((128, 4), dim=1)
    return keys.contiguous().view(torch.float8_e4m3fn), scales.contiguous().view(torch.float32).squeeze(1)


@dataclass(frozen=True)
class TopK:
    """The k best in ascending order; aiter's ordered form breaks ties by the lower index, as we do."""

    gfx: Gfx
    function: Callable[..., Any]

    def supports(self, call: Call) -> Answer:
        """True, or what does not fit."""
        tokens, width = call["logits"].shape
        if self.gfx.wavefront != 64:
            return f"aiter's top-k was read for wavefronts of 64, {self.gfx.name} has {self.gfx.wavefront}"
        if not 1 <= call["k"] <= LONGEST_LIST:
            return f"k = {call['k']}: aiter sorts lists of 1 to {LONGEST_LIST}"
        if not tokens or not width:
            return "there is no token or no score"
        if tokens * width >= 2**31:
            return f"{tokens} x {width} scores do not fit 32-bit offsets"
        return True

    def run(self, call: Call) -> Tensor:
        """i32 [T, k], -1 behind the last choice. Adding 0.0 makes -0 and +0 tie, which they do not there."""
        logits, k = call["logits"] + 0.0, call["k"]
        ends = call["context_lens"].clamp(max=logits.shape[1]).contiguous()
        out = torch.empty(logits.shape[0], k, dtype=torch.int32, device=logits.device)
        self.function(
            logits, torch.zeros_like(ends), ends, out, None, logits.shape[0], logits.stride(0),
            logits.stride(1), k=k, stable=True,
        )  # fmt: skip
        return out


def logits(gfx: Gfx, function: Callable[..., Any]) -> Provider:
    """aiter's scores as a provider of `indexer_logits`."""
    adapter = Logits(gfx, function)
    return Provider("aiter fp8_mqa_logits", 10, adapter.supports, adapter.run)


def topk(gfx: Gfx, function: Callable[..., Any]) -> Provider:
    """aiter's selection as a provider of `indexer_topk`."""
    adapter = TopK(gfx, function)
    return Provider("aiter top_k_per_row_prefill", 10, adapter.supports, adapter.run)
