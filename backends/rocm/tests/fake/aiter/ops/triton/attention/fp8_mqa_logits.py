"""Index scores over one row of keys."""

from __future__ import annotations

import torch
from torch import Tensor

from aiter.form import need, told, typed

CODES = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)


def fp8_mqa_logits(Q, KV, kv_scales, weights, cu_starts, cu_ends, clean_logits=True):
    """f32 [T, n]; NaN where the kernel would not write without clean_logits."""
    tokens, heads = Q.shape[0], Q.shape[1]
    need(Q.ndim == 3 and Q.dtype in CODES and heads & (heads - 1) == 0, "logits.heads", told(Q))
    need(isinstance(KV, Tensor) and KV.ndim == 2 and KV.dtype in CODES, "logits.recast", told(KV))
    typed(kv_scales, torch.float32, 1, "logits.scales")
    need(kv_scales.shape[0] == KV.shape[0], "logits.scales", told(kv_scales))
    shaped = tuple(weights.shape) == (tokens, heads)
    need(weights.dtype == torch.float32 and shaped, "logits.weights", told(weights))
    for ends in (cu_starts, cu_ends):
        typed(ends, torch.int32, 1, "logits.range")
        need(ends.shape[0] == tokens, "logits.range", told(ends))
    dots = torch.einsum("thd,nd->thn", Q.double(), KV.double()) * kv_scales.double()
    scores = (dots.relu() * weights.double().unsqueeze(2)).sum(dim=1).float()
    column = torch.arange(KV.shape[0])
    seen = (column >= cu_starts.unsqueeze(1)) & (column < cu_ends.unsqueeze(1))
    wide = -(-KV.shape[0] // 256) * 256  # rows of the result are 256 aligned
    out = torch.full((tokens, wide), -torch.inf if clean_logits else torch.nan)[:, : KV.shape[0]]
    return out.copy_(torch.where(seen, scores, out))
