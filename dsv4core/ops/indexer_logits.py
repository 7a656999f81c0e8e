"""Index scores of every visible entry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dsv4core.ops import _scores
from dsv4core.ops._contract import E4M3, F32, I32, U8, check_range, page, spec
from dsv4core.ops._op import Tolerance, Values, op
from dsv4core.ops._rows import blocks, page_layout

NAME = "indexer_logits"
ENTRIES, SCORES = 4096, 1 << 24  # entries per block, f64 products per block
BOUND = Tolerance(
    "logits", 1e-5, "times kscale * sum_h |w_h| sum_d |q_hd k_d| against f64; fp8 MMA misses it"
)
TENSORS = {
    "q": spec("T H D", E4M3, U8, F32),
    "q_scales": spec("T H S", U8, optional=True),
    "weights": spec("T H", F32),
    "k_cache": page("index"),
    "context_lens": spec("T", I32, strides="any"),
    "token_to_req": spec("T", I32, strides="any"),
    "block_table": spec("R W", I32, strides="any"),
}


def _fake(
    q: Tensor, q_scales: Tensor | None, weights: Tensor, k_cache: Tensor, context_lens: Tensor,
    token_to_req: Tensor, block_table: Tensor, *, rows: int, layout: str, max_len: int, rotate: str = "none",
) -> Tensor:  # fmt: skip
    return weights.new_empty(weights.shape[0], max_len)


def values(op: str) -> Values:
    """Checked mode: requests exist, contexts fit their tables, visible entries have pages of this cache."""

    def check(a: Mapping[str, Any], dims: Mapping[str, int]) -> None:
        check_range(op, "token_to_req", a["token_to_req"], 0, max(dims["R"], 1), "requests")
        longest = dims["W"] * a["rows"] if dims["R"] else 0
        check_range(op, "context_lens", a["context_lens"], 0, longest + 1, "lengths")
        check_range(op, "block_table", a["block_table"], -(2**31), dims["N"], "pages")
        lens = a["context_lens"].clamp(max=a["max_len"]) if "max_len" in a else a["context_lens"]
        _scores.check_pages(op, a["block_table"], a["token_to_req"], lens, a["rows"])

    return check


@op(fake=_fake, tensors=TENSORS, tolerance=BOUND, values=values(NAME))
def indexer_logits(
    q: Tensor, q_scales: Tensor | None, weights: Tensor, k_cache: Tensor, context_lens: Tensor,
    token_to_req: Tensor, block_table: Tensor, *, rows: int, layout: str, max_len: int, rotate: str = "none",
) -> Tensor:  # fmt: skip
    """kscale_s * sum_h w_h relu(q_h . k_s) for the entries s < context_lens[t]; -inf at and behind it.

    Shapes: q e4m3 [T, H, 128] (or u8 [T, H, 64] with q_scales u8 [T, H, 4], or f32), weights f32 [T, H],
    k_cache u8 [N, B], context_lens i32 [T] (entries visible), token_to_req i32 [T], block_table i32 [R, W] ->
    f32 [T, max_len]. `rotate` is the rotation of q and must be the layout's.
    """
    source = page_layout(NAME, layout, rows=rows, pages=k_cache, families=("index",))
    _scores.check_queries(NAME, q, q_scales, source, rotate)
    mxfp4 = q_scales is not None
    out = weights.new_full((q.shape[0], max_len), -torch.inf)
    for request, tokens, longest in _scores.tokens_by_request(token_to_req, context_lens):
        for span in blocks(min(longest, max_len), ENTRIES):
            k, factor = _scores.entry_values(k_cache, block_table, request, span, source, rows, NAME)
            visible = torch.arange(span.start, span.stop, device=q.device)
            for part in blocks(tokens.shape[0], SCORES // (q.shape[1] * k.shape[0])):
                t = tokens[part]
                block = _scores.scores(_scores.query_values(q, q_scales, t), weights[t], k, factor, mxfp4)
                out[t, span] = torch.where(visible < context_lens[t].unsqueeze(1), block, -torch.inf)
    return out
