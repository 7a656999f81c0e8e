"""A correct backend that does everything in another order: no case may object to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsv4core.layout import get_layout
from dsv4core.numerics import group_fp4
from dsv4core.numerics.block_fp8 import dequantise
from dsv4core.ops import OPS
from dsv4core_conformance.mutants.subjects import portable_subject
from dsv4core_conformance.subject import Subject

TILE = 48  # keys per tile: no power of two, and none of the portable bodies' blocks
SPLIT = 96  # inputs per partial product


def permuted_subject() -> Subject:
    """The portable bodies, with other orders of sums wherever the contract leaves the order open."""
    return portable_subject(
        "permuted",
        {
            "sparse_decode": sparse_decode,
            "sparse_prefill": sparse_prefill,
            "indexer_logits": indexer_logits,
            "indexer_topk": indexer_topk,
            "sparse_indexer": sparse_indexer,
            "linear": linear,
            "grouped_output_projection": grouped_output_projection,
            "fused_q_kv_rmsnorm": fused_q_kv_rmsnorm,
        },
    )


def sparse_decode(
    q: Tensor, swa_cache: Tensor, swa_slots: Tensor, swa_lens: Tensor, extra_cache: Tensor | None,
    extra_slots: Tensor | None, extra_lens: Tensor | None, attn_sink: Tensor, out: Tensor, *,
    scale: float, swa_rows: int, extra_rows: int, layout: str, extra_layout: str,
) -> Tensor:  # fmt: skip
    """Compressed keys before window keys, both from the back; last token first."""
    lse = attn_sink.new_empty(q.shape[0], q.shape[1])
    sources = [(swa_cache, swa_slots, swa_lens, swa_rows, layout)]
    if extra_cache is not None:
        assert extra_slots is not None and extra_lens is not None
        sources.insert(0, (extra_cache, extra_slots, extra_lens, extra_rows, extra_layout))
    for t in reversed(range(q.shape[0])):
        keys: list[Tensor] = []
        for cache, slots, lens, rows, name in sources:
            listed = slots[t, : int(lens[t])].long().flip(0)
            listed = listed[(listed >= 0) & (listed < cache.shape[0] * rows)]
            source = get_layout(name)
            keys.append(source.decode(source.read(cache, listed, rows)).float())
        _attend(q[t], torch.cat(keys), attn_sink, scale, out[t], lse[t])
    return lse


def sparse_prefill(
    q: Tensor, kv: Tensor, indices: Tensor, lens: Tensor, attn_sink: Tensor, out: Tensor, *, scale: float
) -> Tensor:
    """Keys in the order of their rows in the workspace, from the back; last token first."""
    lse = attn_sink.new_empty(q.shape[0], q.shape[1])
    for t in reversed(range(q.shape[0])):
        listed = indices[t, : int(lens[t])].long().sort(descending=True).values
        listed = listed[(listed >= 0) & (listed < kv.shape[0])]
        _attend(q[t], kv[listed].float(), attn_sink, scale, out[t], lse[t])
    return lse


def _attend(q: Tensor, keys: Tensor, sink: Tensor, scale: float, out: Tensor, lse: Tensor) -> None:
    """Tile by tile with a running maximum, the sink as one more key without a value.

    Shapes: q [H, 512], keys f32 [n, 512], sink f32 [H], out [H, 512], lse f32 [H].
    """
    if not keys.shape[0]:
        out.zero_()
        lse.fill_(torch.inf)
        return
    heads = q.shape[0]
    peak = torch.full((heads, 1), -torch.inf)
    mass, total = torch.zeros(heads, 1), torch.zeros(heads, 512)
    for tile in keys.split(TILE):
        scores = (q.float() @ tile.T) * scale
        higher = torch.maximum(peak, scores.amax(1, keepdim=True))
        shrink = (peak - higher).exp()
        p = (scores - higher).exp()
        mass, peak = mass * shrink + p.sum(1, keepdim=True), higher
        total = total * shrink + p @ tile
    found = peak + mass.log()
    lse.copy_(found.squeeze(1))
    share = 1 / (1 + (sink.double().unsqueeze(1) - found.double()).exp())
    out.copy_(total / mass * share.float())


def indexer_logits(
    q: Tensor, q_scales: Tensor | None, weights: Tensor, k_cache: Tensor, context_lens: Tensor,
    token_to_req: Tensor, block_table: Tensor, *, rows: int, layout: str, max_len: int, rotate: str = "none",
) -> Tensor:  # fmt: skip
    """Heads in the opposite order; each token in a call of its own."""
    parts = [
        OPS["indexer_logits"].body(
            q[t : t + 1].flip(1), None if q_scales is None else q_scales[t : t + 1].flip(1),
            weights[t : t + 1].flip(1), k_cache, context_lens[t : t + 1], token_to_req[t : t + 1],
            block_table, rows=rows, layout=layout, max_len=max_len, rotate=rotate,
        )
        for t in range(q.shape[0])
    ]  # fmt: skip
    return torch.cat(parts) if parts else weights.new_empty(0, max_len)


def indexer_topk(logits: Tensor, context_lens: Tensor, *, k: int) -> Tensor:
    """By a stable sort of all scores, then a sort of what was chosen."""
    width = logits.shape[1]
    visible = torch.arange(width) < context_lens.unsqueeze(1)
    key = torch.where(visible & ~logits.isnan(), logits + 0.0, -torch.inf)
    order = torch.argsort(key, dim=1, descending=True, stable=True)
    first = torch.argsort((~visible).gather(1, order).to(torch.int8), dim=1, stable=True)
    order = order.gather(1, first)[:, :k]
    chosen = torch.where(visible.gather(1, order), order, width).sort(dim=1).values
    out = torch.full((logits.shape[0], k), -1, dtype=torch.int32)
    out[:, : chosen.shape[1]] = torch.where(chosen < width, chosen, -1).to(torch.int32)
    return out


def sparse_indexer(
    q: Tensor, q_scales: Tensor | None, weights: Tensor, k_cache: Tensor, context_lens: Tensor,
    token_to_req: Tensor, block_table: Tensor, *, rows: int, layout: str, k: int, workspace_bytes: int,
    rotate: str = "none",
) -> Tensor:  # fmt: skip
    """Heads in the opposite order and tokens from the back, in smaller chunks."""
    back = torch.arange(q.shape[0] - 1, -1, -1)
    found = OPS["sparse_indexer"].body(
        q.view(torch.uint8)[back].flip(1).view(q.dtype) if q.element_size() == 1 else q[back].flip(1),
        None if q_scales is None else q_scales[back].flip(1), weights[back].flip(1), k_cache,
        context_lens[back], token_to_req[back], block_table, rows=rows, layout=layout, k=k,
        workspace_bytes=workspace_bytes, rotate=rotate,
    )  # fmt: skip
    return found[back]


def linear(
    x: Tensor, weight: Tensor, scales: Tensor | None, global_scale: Tensor | None, *, format: str,
    out_dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Partial products over slices of the inputs, added from the back, in f32."""
    # Without rows the body only refuses what does not fit together.
    OPS["linear"].body(x[:0], weight, scales, global_scale, format=format, out_dtype=out_dtype)
    if format == "bf16":
        dense = weight.float()
    elif format == "fp8_block":
        assert scales is not None
        dense = dequantise(weight, scales, torch.float32)
    else:
        assert scales is not None
        dense = group_fp4.dequantise(weight, scales)
        dense = dense if global_scale is None else dense * global_scale
    return _split(x.float(), dense).to(out_dtype)


def grouped_output_projection(
    o: Tensor, o_scales: Tensor | None, wo_a: Tensor, wo_a_scales: Tensor | None, *, groups: int
) -> Tensor:
    """The body on single rows, the last one first."""
    body: Any = OPS["grouped_output_projection"].body
    parts = [
        body(
            o[t : t + 1], None if o_scales is None else o_scales[t : t + 1], wo_a, wo_a_scales, groups=groups
        )
        for t in reversed(range(o.shape[0]))
    ]
    return torch.cat(parts[::-1]) if parts else body(o, o_scales, wo_a, wo_a_scales, groups=groups)


def fused_q_kv_rmsnorm(
    qr: Tensor, kv: Tensor, q_weight: Tensor, kv_weight: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """Channels in the opposite order: the sum of squares is exact, so no bit may change."""
    normed = OPS["fused_q_kv_rmsnorm"].body(
        qr.flip(1), kv.flip(1), q_weight.flip(0), kv_weight.flip(0), eps=eps
    )
    return normed[0].flip(1), normed[1].flip(1)


def _split(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight^T, row by row: rows stay independent. Shapes: f32 [T, in], [out, in] -> f32 [T, out]."""
    out = x.new_zeros(x.shape[0], weight.shape[0])
    for t in range(x.shape[0]):
        for start in reversed(range(0, x.shape[1], SPLIT)):
            out[t] += weight[:, start : start + SPLIT] @ x[t, start : start + SPLIT]
    return out
