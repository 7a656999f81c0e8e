"""Prefill over two sources of bf16 rows, gfx950."""

from __future__ import annotations

import torch
from torch import Tensor

from aiter.form import arch, need, number, starts, told, typed
from aiter.softmax import finish, part


def pa_sparse_prefill_opus(
    q, unified_kv, kv_indices_prefix, kv_indptr_prefix, kv, kv_indices_extend, kv_indptr_extend, attn_sink,
    softmax_scale, out=None,
):  # fmt: skip
    """Output [T, H, 512]."""
    need(arch() == "gfx950", "prefill.gfx950", arch())
    for rows in (q, unified_kv, kv):
        bf16 = isinstance(rows, Tensor) and rows.dtype == torch.bfloat16 and rows.stride(-1) == 1
        need(bf16 and rows.shape[-1] == 512, "prefill.dtype", told(rows))
    need(unified_kv.stride(0) == kv.stride(0), "prefill.key_strides", told(kv))
    scale = number(softmax_scale, "prefill.dtype")
    sink = typed(attn_sink, torch.float32, 1, "prefill.sink_f32")
    need(sink.shape[0] == q.shape[1], "prefill.sink_f32", told(sink))
    if out is None:
        out = torch.empty_like(q)
    need(out.shape == q.shape and out.dtype == q.dtype, "prefill.out", told(out))
    need(out.stride() == q.stride(), "prefill.out_strides", told(out))
    sources = [
        (unified_kv, *_list(kv_indices_prefix, kv_indptr_prefix, q.shape[0], unified_kv.shape[0])),
        (kv, *_list(kv_indices_extend, kv_indptr_extend, q.shape[0], kv.shape[0])),
    ]
    for t in range(q.shape[0]):
        keys = [rows[flat[begins[t] : begins[t + 1]].long()] for rows, flat, begins in sources]
        out[t] = finish([part(q[t], torch.cat(keys), scale)], sink).bfloat16()
    return out


def _list(indices: object, indptr: object, rows: int, high: int) -> tuple[Tensor, list[int]]:
    flat = typed(indices, torch.int32, 1, "prefill.int32")
    begins = starts(indptr, rows, flat.shape[0], "prefill.int32", "prefill.starts")
    used = flat[: begins[-1]]
    need(not bool(((used < 0) | (used >= high)).any()), "prefill.valid", "an index outside of the source")
    return flat, begins
