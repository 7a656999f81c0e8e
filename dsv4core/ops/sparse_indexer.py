"""Scores and top-k fused over bounded chunks."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.layout import CacheLayout
from dsv4core.ops import _scores
from dsv4core.ops._op import op
from dsv4core.ops._rows import blocks, page_layout
from dsv4core.ops._select import select
from dsv4core.ops.indexer_logits import TENSORS, values

NAME = "sparse_indexer"
CELL_BYTES = 24  # f64 products, their relu-weighted copy and half of it, per (token, head, entry)
CHANNEL_BYTES = 16  # an entry's or a query's channel: code, f32 and f64
MINIMUM_ENTRIES, MAXIMUM_ENTRIES = 64, 4096


def _fake(
    q: Tensor, q_scales: Tensor | None, weights: Tensor, k_cache: Tensor, context_lens: Tensor,
    token_to_req: Tensor, block_table: Tensor, *, rows: int, layout: str, k: int, workspace_bytes: int,
    rotate: str = "none",
) -> Tensor:  # fmt: skip
    return context_lens.new_empty(context_lens.shape[0], k)


@op(fake=_fake, tensors=TENSORS, values=values(NAME))
def sparse_indexer(
    q: Tensor, q_scales: Tensor | None, weights: Tensor, k_cache: Tensor, context_lens: Tensor,
    token_to_req: Tensor, block_table: Tensor, *, rows: int, layout: str, k: int, workspace_bytes: int,
    rotate: str = "none",
) -> Tensor:  # fmt: skip
    """`indexer_topk(indexer_logits(...))` that never holds more than `workspace_bytes` of scores and keys.

    Shapes: as `indexer_logits` -> i32 [T, k] ascending, -1 behind. The list does not depend on the chunking:
    scores are the same bits in every chunk and a running list is merged in ascending index.
    """
    source = page_layout(NAME, layout, rows=rows, pages=k_cache, families=("index",))
    if k < 1:
        raise OpArgumentError(NAME, "k", ">= 1", str(k))
    heads, row = q.shape[1], _scores.check_queries(NAME, q, q_scales, source, rotate) * CHANNEL_BYTES
    per_entry = heads * CELL_BYTES + row
    least = MINIMUM_ENTRIES * per_entry + heads * row
    if workspace_bytes < least:
        raise OpArgumentError(NAME, "workspace_bytes", f">= {least}", str(workspace_bytes))
    column = torch.arange(k, dtype=torch.int32, device=q.device)
    out = torch.where(column < context_lens.unsqueeze(1), column, -1)  # all visible entries, while they fit
    scored = torch.where(context_lens > k, context_lens, 0)
    for request, tokens, longest in _scores.tokens_by_request(token_to_req, scored):
        entries = min(longest, MAXIMUM_ENTRIES, (workspace_bytes - heads * row) // per_entry)
        per_token = heads * (entries * CELL_BYTES + row)
        for part in blocks(tokens.shape[0], (workspace_bytes - entries * row) // per_token):
            t = tokens[part]
            spans = blocks(longest, entries)
            out[t] = _running(
                [(span, request) for span in spans], _scores.query_values(q, q_scales, t), weights[t],
                context_lens[t], k_cache, block_table, source, rows, k, q_scales is not None,
            )  # fmt: skip
    return out


def _running(
    spans: list[tuple[slice, int]], q: Tensor, weights: Tensor, lens: Tensor, k_cache: Tensor, table: Tensor,
    source: CacheLayout, rows: int, k: int, mxfp4: bool,
) -> Tensor:  # fmt: skip
    """Fold block after block into the best k so far."""
    best = lens.new_full((lens.shape[0], 0), -1)
    best_scores = weights.new_empty(lens.shape[0], 0)
    for span, request in spans:
        block = _block(q, weights, k_cache, table, request, span, source, rows, mxfp4)
        column = torch.arange(span.start, span.stop, dtype=torch.int32, device=lens.device)
        column = torch.where(column < lens.unsqueeze(1), column, -1)
        # The running list is padded with -1, its indices are below the block's: the row stays ascending.
        best, best_scores = select(torch.cat((best_scores, block), 1), torch.cat((best, column), 1), k)
    return best


def _block(
    q: Tensor, weights: Tensor, k_cache: Tensor, table: Tensor, request: int, span: slice,
    source: CacheLayout, rows: int, mxfp4: bool,
) -> Tensor:  # fmt: skip
    """Scores of one span; its keys are gone before the next ones are read."""
    keys, factor = _scores.entry_values(k_cache, table, request, span, source, rows, NAME)
    return _scores.scores(q, weights, keys, factor, mxfp4)
