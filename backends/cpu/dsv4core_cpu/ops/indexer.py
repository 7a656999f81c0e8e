"""`indexer_logits`, `indexer_topk`, `sparse_indexer`: scores from bf16 products, which are exact for e4m3."""

from __future__ import annotations

from ctypes import CDLL, c_int
from typing import Any

import torch
from torch import Tensor

from dsv4core.layout import get_layout
from dsv4core.ops import OPS, _scores
from dsv4core_cpu.ops._call import LAYOUTS, Fresh, function, pages, threads

ARGUMENTS = "pll pll pll ll pllli pl pl pllll i"
INDEX = tuple(name for name in LAYOUTS if name.startswith("index_"))


def _arguments(
    q: Tensor, q_scales: Tensor | None, weights: Tensor, k_cache: Tensor, context_lens: Tensor,
    token_to_req: Tensor, block_table: Tensor, rows: int, layout: str,
) -> tuple[Any, ...]:  # fmt: skip
    scales = (None, 0, 0)
    if q_scales is not None:
        scales = (q_scales.data_ptr(), q_scales.stride(0), q_scales.stride(1))
    size = q.element_size()
    return (
        q.data_ptr(), size * q.stride(0), size * q.stride(1), *scales, weights.data_ptr(), weights.stride(0),
        weights.stride(1), q.shape[0], q.shape[1], *pages(k_cache, rows, layout), context_lens.data_ptr(),
        context_lens.stride(0), token_to_req.data_ptr(), token_to_req.stride(0), block_table.data_ptr(),
        block_table.stride(0), block_table.stride(1), block_table.shape[0], block_table.shape[1], threads(),
    )  # fmt: skip


def ops(library: CDLL) -> dict[str, Any]:
    """The three ops on one library."""
    fresh = Fresh(library)
    score = function(library, "dsv4_indexer_logits", ARGUMENTS + "pl", c_int)
    fused = function(library, "dsv4_sparse_indexer", ARGUMENTS + "pl", c_int)
    choose = function(library, "dsv4_indexer_topk", "pl ll pl pl i")
    bodies = {name: OPS[name].body for name in ("indexer_logits", "indexer_topk", "sparse_indexer")}

    def indexer_logits(
        q: Tensor, q_scales: Tensor | None, weights: Tensor, k_cache: Tensor, context_lens: Tensor,
        token_to_req: Tensor, block_table: Tensor, *, rows: int, layout: str, max_len: int,
        rotate: str = "none",
    ) -> Tensor:  # fmt: skip
        """`dsv4core.ops.indexer_logits`."""
        given = (q, q_scales, weights, k_cache, context_lens, token_to_req, block_table)
        if layout in INDEX:
            _scores.check_queries("indexer_logits", q, q_scales, get_layout(layout), rotate)
            out = fresh(q.shape[0], max_len, dtype=torch.float32)
            if score(*_arguments(*given, rows, layout), out.data_ptr(), max_len) == 0:
                return out
        return bodies["indexer_logits"](*given, rows=rows, layout=layout, max_len=max_len, rotate=rotate)

    def sparse_indexer(
        q: Tensor, q_scales: Tensor | None, weights: Tensor, k_cache: Tensor, context_lens: Tensor,
        token_to_req: Tensor, block_table: Tensor, *, rows: int, layout: str, k: int, workspace_bytes: int,
        rotate: str = "none",
    ) -> Tensor:  # fmt: skip
        """`dsv4core.ops.sparse_indexer`; the workspace is a few blocks and 2k candidates per token."""
        given = (q, q_scales, weights, k_cache, context_lens, token_to_req, block_table)
        if layout in INDEX and workspace_bytes >= _least(q, q_scales, layout, rotate):
            out = fresh(q.shape[0], k, dtype=torch.int32)
            if fused(*_arguments(*given, rows, layout), out.data_ptr(), k) == 0:
                return out
        return bodies["sparse_indexer"](
            *given, rows=rows, layout=layout, k=k, workspace_bytes=workspace_bytes, rotate=rotate
        )

    def indexer_topk(logits: Tensor, context_lens: Tensor, *, k: int) -> Tensor:
        """`dsv4core.ops.indexer_topk`."""
        out = fresh(logits.shape[0], k, dtype=torch.int32)
        choose(
            logits.data_ptr(), logits.stride(0), logits.shape[0], logits.shape[1], context_lens.data_ptr(),
            context_lens.stride(0), out.data_ptr(), k, threads(),
        )  # fmt: skip
        return out

    return {"indexer_logits": indexer_logits, "indexer_topk": indexer_topk, "sparse_indexer": sparse_indexer}


def _least(q: Tensor, q_scales: Tensor | None, layout: str, rotate: str) -> int:
    """The smallest workspace the contract allows, after its check of the queries."""
    from dsv4core.ops.sparse_indexer import CELL_BYTES, CHANNEL_BYTES, MINIMUM_ENTRIES

    heads = q.shape[1]
    row = _scores.check_queries("sparse_indexer", q, q_scales, get_layout(layout), rotate) * CHANNEL_BYTES
    return MINIMUM_ENTRIES * (heads * CELL_BYTES + row) + heads * row
