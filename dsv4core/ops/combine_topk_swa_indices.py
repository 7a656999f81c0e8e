"""One index list per prefill query over the gathered workspace: chosen entries, then the window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.ops._contract import I32, check_range, spec
from dsv4core.ops._op import op

NAME = "combine_topk_swa_indices"
WIDTH_MULTIPLE = 128  # what sparse prefill kernels tile by


def _width(window: int, top_k: int) -> int:
    return -(-(top_k + window) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE


def _fake(
    topk: Tensor, query_start_loc: Tensor, seq_lens: Tensor, gather_lens: Tensor, *,
    window: int, ratio: int, top_k: int, M: int, N: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return topk.new_empty(topk.shape[0], _width(window, top_k)), topk.new_empty(topk.shape[0])


def _values(a: Mapping[str, Any], dims: Mapping[str, int]) -> None:
    """The workspace of every request holds the entries and the window rows that its queries will list."""
    starts, seq, gathered = a["query_start_loc"].long(), a["seq_lens"].long(), a["gather_lens"].long()
    if not seq.shape[0] or starts.shape[0] != seq.shape[0] + 1:
        return
    queries = starts.diff()
    check_range(NAME, "query_start_loc", starts[:1], 0, 2**31, "starts")
    check_range(NAME, "query_start_loc", queries, 0, 2**31, "differences")
    check_range(NAME, "query_start_loc", starts[-1:] - starts[0], 0, dims["T"] + 1, "queries")
    check_range(NAME, "seq_lens", seq - queries, 0, 2**31, "seq_lens less the queries of the step,")
    needed = torch.minimum(seq, queries + a["window"] - 1) * (queries > 0)
    check_range(NAME, "gather_lens", gathered - needed, 0, 2**31, "gather_lens less the window rows needed")
    check_range(NAME, "gather_lens", seq - gathered, 0, 2**31, "seq_lens less gather_lens")
    check_range(
        NAME, "gather_lens", gathered, 0, max(a["M"] - a["N"], 0) + 1, "rows behind N in the workspace"
    )
    if a["top_k"] and a["ratio"]:
        listed = min(a["top_k"], int(seq.max()) // a["ratio"])
        check_range(NAME, "topk", a["topk"][:, :listed], -(2**31), a["N"], "entries")


@op(
    fake=_fake,
    values=_values,
    minimum={"ratio": 0},
    tensors={
        "topk": spec("T K", I32, strides="any"),
        "query_start_loc": spec("R1", I32, strides="any"),
        "seq_lens": spec("R", I32, strides="any"),
        "gather_lens": spec("R", I32, strides="any"),
    },
)
def combine_topk_swa_indices(
    topk: Tensor, query_start_loc: Tensor, seq_lens: Tensor, gather_lens: Tensor, *,
    window: int, ratio: int, top_k: int, M: int, N: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The first min((p+1)//ratio, top_k) listed entries of a query, then its window rows, as workspace rows.

    Request b of the chunk owns workspace rows b*M .. b*M + M - 1: entries from 0, window rows from N on, the
    last gather_lens[b] positions. Rows behind the last query are padding: -1 throughout, length 0.
    Shapes: topk i32 [T, K], query_start_loc i32 [R + 1] (may start above 0), seq_lens and gather_lens
    i32 [R] -> indices i32 [T, roundup(top_k + window, 128)] (-1 behind lens), lens i32 [T].
    """
    requests = seq_lens.shape[0]
    if query_start_loc.shape[0] != requests + 1:
        raise OpArgumentError(
            NAME, "query_start_loc", f"shape [{requests + 1}]", f"{list(query_start_loc.shape)}"
        )
    if window < 1 or top_k < 0 or top_k > topk.shape[1]:
        raise OpArgumentError(
            NAME, "top_k", f"0 <= top_k <= {topk.shape[1]}, window >= 1", f"{top_k}, {window}"
        )
    if top_k and ratio < 1:
        raise OpArgumentError(NAME, "ratio", ">= 1 when top_k is not 0", str(ratio))
    tokens = topk.shape[0]
    out = torch.full((tokens, _width(window, top_k)), -1, dtype=torch.int32, device=topk.device)
    if not tokens or not requests:
        return out, topk.new_zeros(tokens)
    start = (query_start_loc - query_start_loc[0]).long()
    token = torch.arange(tokens, device=topk.device)
    b = (torch.searchsorted(start, token, right=True) - 1).clamp(0, requests - 1)
    seq, gathered = seq_lens.long()[b], gather_lens.long()[b]
    p = seq - (start[b + 1] - start[b]) + token - start[b]
    entries = (
        torch.div(p + 1, ratio, rounding_mode="floor").clamp(max=top_k) if top_k else torch.zeros_like(p)
    )
    first = (p - window + 1).clamp(min=0)
    live = token < start[-1]  # a step that is padded to its bucket has rows of no query behind
    entries = torch.where(live, entries, 0)
    lens = torch.where(live, entries + p + 1 - first, 0)

    column = torch.arange(out.shape[1], device=topk.device)
    from_list = column < entries.unsqueeze(1)
    if topk.shape[1]:
        listed = topk.long().gather(1, column.clamp(max=topk.shape[1] - 1).expand(tokens, -1))
        listed = torch.where(listed >= 0, listed + (b * M).unsqueeze(1), -1)
    else:
        listed = torch.full_like(out, -1, dtype=torch.int64)
    position = first.unsqueeze(1) + column - entries.unsqueeze(1)
    row = b.unsqueeze(1) * M + N + position - (seq - gathered).unsqueeze(1)
    inside = ~from_list & (column < lens.unsqueeze(1))
    out[:] = torch.where(from_list, listed, torch.where(inside, row, -1)).to(torch.int32)
    return out, lens.to(torch.int32)
