"""One index list per prefill query over the gathered workspace: chosen entries, then the window."""

import triton
import triton.language as tl
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.kernels.triton._launch import launch, pieces
from dsv4core.kernels.triton._tuning import tuned

NAME = "combine_topk_swa_indices"
WIDTH_MULTIPLE = 128  # what sparse prefill kernels tile by
COLUMNS = 1024  # at a time: a whole list of ratio 4; one of ratio 128 grows with the context


@triton.jit(
    do_not_specialize=["tokens", "requests", "M", "N", "top_k", "width", "topk", "starts", "seq_lens",
                       "gather_lens"]
)  # fmt: skip
def combine_topk_swa_kernel(
    topk, starts, seq_lens, gather_lens, out, lens, tokens, requests, M, N, top_k, width,
    list_stride, entry_stride, start_stride, seq_stride, gather_stride,
    WINDOW: tl.constexpr, RATIO: tl.constexpr, BLOCK: tl.constexpr, REQUESTS: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """ROWS queries a program, BLOCK columns of `width` at a time.

    A query's request is the last that starts at or before it; rows behind the last query are padding.
    """
    t = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = t < tokens
    base = tl.load(starts).to(tl.int64)
    b = tl.zeros([ROWS], tl.int64) - 1
    for first in range(0, requests + 1, REQUESTS):
        r = first + tl.arange(0, REQUESTS)
        begin = tl.load(starts + r * start_stride, r <= requests, other=0).to(tl.int64) - base
        b += tl.sum(((begin[None, :] <= t[:, None]) & (r <= requests)[None, :]).to(tl.int64), 1)
    b = tl.minimum(tl.maximum(b, 0), requests - 1)
    start = tl.load(starts + b * start_stride).to(tl.int64) - base
    end = tl.load(starts + (b + 1) * start_stride).to(tl.int64) - base
    length = tl.load(seq_lens + b * seq_stride).to(tl.int64)
    gathered = tl.load(gather_lens + b * gather_stride).to(tl.int64)
    p = length - (end - start) + t - start
    entries = tl.minimum(tl.where(p >= -1, (p + 1) // RATIO, -1), top_k)
    entries = tl.where(top_k > 0, entries, 0)
    live = t < tl.load(starts + requests * start_stride).to(tl.int64) - base
    entries = tl.where(live, entries, 0)
    first_row = tl.maximum(p - (WINDOW - 1), 0)
    count = tl.where(live, entries + p + 1 - first_row, 0)
    place = topk + (t * list_stride)[:, None]
    row = (b * M + N + first_row - entries - (length - gathered))[:, None]
    for first in range(0, width, BLOCK):
        column = first + tl.arange(0, BLOCK)[None, :]
        chosen = column < entries[:, None]
        listed = tl.load(place + column * entry_stride, inside[:, None] & chosen, other=-1)
        listed = tl.where(listed >= 0, listed.to(tl.int64) + (b * M)[:, None], -1)
        value = tl.where(chosen, listed, tl.where(column < count[:, None], row + column, -1))
        mask = inside[:, None] & (column < width)
        tl.store(out + (t * width)[:, None] + column, value.to(tl.int32), mask)
    tl.store(lens + t, count.to(tl.int32), inside)


def combine_topk_swa_indices(
    topk: Tensor, query_start_loc: Tensor, seq_lens: Tensor, gather_lens: Tensor, *,
    window: int, ratio: int, top_k: int, M: int, N: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The first min((p+1)//ratio, top_k) listed entries of a query, then its window rows, as workspace rows.

    Shapes: topk i32 [T, K], query_start_loc i32 [R + 1] (may start above 0), seq_lens and gather_lens i32 [R]
    -> indices i32 [T, roundup(top_k + window, 128)] (-1 behind lens), lens i32 [T].
    """
    requests = seq_lens.shape[0]
    if query_start_loc.shape[0] != requests + 1:
        expected = f"shape [{requests + 1}]"
        raise OpArgumentError(NAME, "query_start_loc", expected, f"{list(query_start_loc.shape)}")
    if window < 1 or top_k < 0 or top_k > topk.shape[1]:
        expected = f"0 <= top_k <= {topk.shape[1]}, window >= 1"
        raise OpArgumentError(NAME, "top_k", expected, f"{top_k}, {window}")
    if top_k and ratio < 1:
        raise OpArgumentError(NAME, "ratio", ">= 1 when top_k is not 0", str(ratio))
    tokens, width = topk.shape[0], -(-(top_k + window) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
    out, lens = topk.new_empty(tokens, width), topk.new_empty(tokens)
    if not requests:
        return out.fill_(-1), lens.zero_()
    meta = tuned("combine_topk_swa", topk)
    launch(
        combine_topk_swa_kernel, pieces(tokens, meta["ROWS"]), topk, topk,
        query_start_loc, seq_lens, gather_lens,
        out, lens, tokens, requests, M, N, top_k, width, topk.stride(0), topk.stride(1),
        query_start_loc.stride(0), seq_lens.stride(0), gather_lens.stride(0),
        WINDOW=window, RATIO=max(ratio, 1), BLOCK=COLUMNS, REQUESTS=256, **meta,
    )  # fmt: skip
    return out, lens
