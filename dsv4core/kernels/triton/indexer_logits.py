"""Index scores of every visible entry."""

from torch import Tensor

from dsv4core.kernels.triton._launch import supported
from dsv4core.kernels.triton._pages import INDEX
from dsv4core.kernels.triton._scores import check_queries, score

NAME = "indexer_logits"


def indexer_logits(
    q: Tensor, q_scales: Tensor | None, weights: Tensor, k_cache: Tensor, context_lens: Tensor,
    token_to_req: Tensor, block_table: Tensor, *, rows: int, layout: str, max_len: int, rotate: str = "none",
) -> Tensor:  # fmt: skip
    """kscale_s * sum_h w_h relu(q_h . k_s) for the entries s < context_lens[t]; -inf at and behind it.

    Shapes: q e4m3 [T, H, 128] (or u8 [T, H, 64] with q_scales u8 [T, H, 4]), weights f32 [T, H], k_cache u8
    [N, B], context_lens i32 [T], token_to_req i32 [T], block_table i32 [R, W] -> f32 [T, max_len].
    """
    supported(NAME, "layout", layout, INDEX)
    check_queries(NAME, q, q_scales, layout, rotate)
    out = weights.new_empty(q.shape[0], max_len)
    score(
        out, q.contiguous(), q_scales if q_scales is None else q_scales.contiguous(), weights, k_cache,
        context_lens, token_to_req, block_table, rows=rows, layout=layout, first=0, count=max_len, skip=0,
        fill=True,
    )  # fmt: skip
    return out
