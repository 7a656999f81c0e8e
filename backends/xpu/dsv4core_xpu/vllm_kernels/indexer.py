"""`indexer_logits` through `fp8_paged_mqa_logits`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dsv4core.layout import get_layout
from dsv4core.providers import Answer, Call, Provider

OP = "indexer_logits"
NAME = "vllm-xpu-kernels fp8_paged_mqa_logits"
ROWS, RECORD = 64, 132  # of a page, as the operator wants it; bytes of an entry
LOAD = 64  # bytes: where a two-dimensional block load may start
LAYOUTS = ("index_fp8", "index_fp8_hadamard_f32")


@dataclass(frozen=True)
class Scores:
    """Scores of every visible entry; a token goes to the operator as a request with one query of its own."""

    function: Callable[..., Tensor]

    def supports(self, call: Call) -> Answer:
        """True, or what does not fit."""
        q, pages, layout = call["q"], call["k_cache"], call["layout"]
        if layout not in LAYOUTS or q.dtype != torch.float8_e4m3fn:
            return f"it takes e4m3 keys with one f32 scale, the layout is {layout}"
        own = get_layout(layout)
        if call["rotate"] != own.rotate or q.shape[2] != own.width or call["q_scales"] is not None:
            return "these queries are not the layout's"  # which the kernel refuses in the contract's words
        if call["rows"] != ROWS:
            return f"it takes pages of {ROWS} rows, these have {call['rows']}"
        if pages.data_ptr() % LOAD or pages.stride(0) % LOAD:
            return f"it loads blocks from multiples of {LOAD} bytes, some page starts elsewhere"
        if not (q.shape[0] and pages.shape[0] and call["block_table"].numel() and call["max_len"]):
            return "there is no token, no page or no entry"
        return True

    def run(self, call: Call) -> Tensor:
        """f32 [T, max_len], -inf at and behind context_lens."""
        pages, lens = call["k_cache"], call["context_lens"]
        blocks = pages.as_strided(  # a size, not the record: codes of all rows come first, then their scales
            (pages.shape[0], ROWS, 1, RECORD), (pages.stride(0), RECORD, RECORD, 1)
        )
        return self.function(
            call["q"].contiguous().unsqueeze(1),
            blocks,
            call["weights"].contiguous(),
            lens.contiguous(),
            call["block_table"].index_select(0, call["token_to_req"]),
            None,
            call["max_len"],
        )


def provider(function: Callable[..., Any]) -> Provider:
    """The operator as a provider of `indexer_logits`."""
    adapter = Scores(function)
    return Provider(NAME, 10, adapter.supports, adapter.run)
