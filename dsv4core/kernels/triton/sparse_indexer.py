"""Scores and top-k over bounded chunks: blocks of tokens, and blocks of entries where one row is too long."""

import torch
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.kernels.triton._launch import supported
from dsv4core.kernels.triton._pages import INDEX
from dsv4core.kernels.triton._scores import check_queries, score
from dsv4core.kernels.triton._select import candidate_bytes, fold, select

NAME = "sparse_indexer"
LEAST_ENTRIES = 64
SCORE_BYTES = 4


def sparse_indexer(
    q: Tensor, q_scales: Tensor | None, weights: Tensor, k_cache: Tensor, context_lens: Tensor,
    token_to_req: Tensor, block_table: Tensor, *, rows: int, layout: str, k: int, workspace_bytes: int,
    rotate: str = "none",
) -> Tensor:  # fmt: skip
    """`indexer_topk(indexer_logits(...))` that takes `workspace_bytes` for scores, never more.

    Shapes: as `indexer_logits` -> i32 [T, k] ascending, -1 behind. The list does not depend on the chunks: a
    score is the same bits in every chunk, and running lists are merged in ascending index.
    """
    supported(NAME, "layout", layout, INDEX)
    check_queries(NAME, q, q_scales, layout, rotate)
    if k < 1:
        raise OpArgumentError(NAME, "k", ">= 1", str(k))
    running = 4 * k * SCORE_BYTES  # two lists of scores and two of indices, one read and one written
    least = running + LEAST_ENTRIES * 2 * SCORE_BYTES
    if workspace_bytes < least:
        raise OpArgumentError(NAME, "workspace_bytes", f">= {least}", str(workspace_bytes))
    q, q_scales = q.contiguous(), q_scales if q_scales is None else q_scales.contiguous()
    tokens = q.shape[0]
    entries = block_table.shape[1] * rows if block_table.shape[0] else 0
    if context_lens.device.type == "cpu" and tokens:  # no device to wait for: empty columns take no time
        entries = min(entries, max(int(context_lens.max()), 0))
    out = context_lens.new_empty(tokens, k)
    # All at once: what a call takes must not hang on the width of a table, most of which may be empty.
    room = weights.new_empty(workspace_bytes // SCORE_BYTES)
    of_token = entries + candidate_bytes(entries, k) // SCORE_BYTES
    at_once = room.numel() // max(of_token, 1)
    for start in range(0, tokens, max(at_once, 1)):
        t = slice(start, start + max(at_once, 1))
        part = (
            q[t], None if q_scales is None else q_scales[t], weights[t], k_cache, context_lens[t],
            token_to_req[t], block_table,
        )  # fmt: skip
        if at_once:
            count = part[0].shape[0]
            scores = room[: count * entries].view(count, entries)
            score(scores, *part, rows=rows, layout=layout, first=0, count=entries, skip=k, fill=False)
            select(scores, context_lens[t], out[t], count=entries, room=room[scores.numel() :])
        else:
            _in_chunks(out[t], part, entries, room, rows, layout, k)
    return out


def _in_chunks(
    out: Tensor, part: tuple[Tensor | None, ...], entries: int, room: Tensor, rows: int, layout: str, k: int
) -> None:
    """One token's list, chunk after chunk folded into the best so far. Shapes: out i32 [1, k], room f32."""
    lens = part[4]
    assert lens is not None
    lists = room[: 2 * k].view(torch.int32).view(2, 1, k)
    buffers = room[2 * k :]  # the list's scores, then the chunk's: read one, write the other
    chunk = buffers.numel() // 2 - k
    buffers = buffers[: 2 * (k + chunk)].view(2, 1, k + chunk)
    for turn, first in enumerate(range(0, entries, chunk)):
        old, new = turn % 2, 1 - turn % 2
        count = min(chunk, entries - first)
        score(
            buffers[old][:, k:], *part, rows=rows, layout=layout, first=first, count=count, skip=k, fill=False
        )
        fold(buffers[old], lists[old], lens, lists[new], buffers[new], first=first, count=count)
        last = lists[new]
    out.copy_(last)
