"""Legal arguments for every op: what tests, `bench` and a new backend's first run call it with.

Numbers come from an integer hash, so they are the same with every torch and on every device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dsv4core.config import AttentionConfig
from dsv4core.layout import get_layout
from dsv4core.numerics import tables
from dsv4core.ops import OPS
from dsv4core.synthetic import hash_normal

TINY = AttentionConfig.preset("tiny")


@dataclass(frozen=True)
class Size:
    """How large a sample is: tokens, entries per request, and the model whose dimensions it takes."""

    tokens: int = 5
    context: int = 40
    config: AttentionConfig = TINY
    seed: int = 0


def sample(op: str, size: Size | None = None, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Arguments of one call, by name; every tensor is fresh.

    One request per token, each with pages of its own. Raises KeyError for a name the contract does not have.
    """
    with torch.device("cpu"):
        arguments = _MAKERS[op](_Maker(size or Size()))
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in arguments.items()}


class _Maker:
    """Tensors of a size, drawn one after another from the hash."""

    def __init__(self, size: Size) -> None:
        self.size, self.c, self.stream = size, size.config, 0

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16, std: float = 1.0) -> Tensor:
        self.stream += 1
        return hash_normal(shape, self.size.seed, str(self.stream), std, dtype=dtype)

    def positions(self) -> Tensor:
        return torch.arange(self.size.tokens) % 3 + 4 * self.size.context

    def cos_sin(self, theta: float = 160000.0) -> Tensor:
        return tables.cos_sin(theta, self.c.yarn, 4 * self.size.context + 128)

    def pages(self, layout: str, rows: int, count: int) -> Tensor:
        found = get_layout(layout)
        return found.encode_pages(self.normal(count, rows, found.values))

    def per_request(self, rows: int) -> int:
        return -(-self.size.context // rows)

    def table(self, rows: int) -> Tensor:
        """Every request owns its pages, in an order of its own."""
        width = self.per_request(rows)
        pages = torch.arange(self.size.tokens * width, dtype=torch.int32)
        return pages.flip(0).view(self.size.tokens, width)

    def tokens_i32(self) -> Tensor:
        return torch.arange(self.size.tokens, dtype=torch.int32)

    def lens(self, high: int) -> Tensor:
        return torch.full((self.size.tokens,), high, dtype=torch.int32)

    def heads(self) -> Tensor:
        return self.normal(self.size.tokens, self.c.num_attention_heads, 512)


def _norm(m: _Maker) -> dict[str, Any]:
    t, q = m.size.tokens, m.c.q_lora_rank
    joined = m.normal(t, q + 512)
    return {
        "qr": joined[:, :q], "kv": joined[:, q:], "q_weight": m.normal(q), "kv_weight": m.normal(512),
        "eps": 1e-6,
    }  # fmt: skip


def _insert(m: _Maker) -> dict[str, Any]:
    t = m.size.tokens
    layout = m.c.main_layout
    return {
        "k": m.normal(t, 512), "k_cache": m.pages(layout, 64, -(-t // 64) + 1),
        "slot_mapping": torch.arange(t).flip(0) + 3, "rows": 64, "layout": layout,
    }  # fmt: skip


def _qnorm_insert(m: _Maker) -> dict[str, Any]:
    base = _insert(m)
    return {
        "q": m.heads(), "kv": base.pop("k"), "positions": m.positions(), "cos_sin": m.cos_sin(),
        **base, "eps": 1e-6, "padded_heads": m.c.num_attention_heads,
    }  # fmt: skip


def _gather(m: _Maker) -> dict[str, Any]:
    t, context, layout = m.size.tokens, m.size.context, m.c.main_layout
    return {
        "out": torch.zeros(t, context + 2, 512, dtype=torch.bfloat16),
        "k_cache": m.pages(layout, 64, t * m.per_request(64)), "seq_lens": m.lens(context),
        "gather_lens": m.lens(context - 1), "block_table": m.table(64), "rows": 64, "offset": 2,
        "layout": layout,
    }  # fmt: skip


def _states(m: _Maker) -> dict[str, Any]:
    t, width = m.size.tokens, 1024
    joined = m.normal(t, 2 * width, dtype=torch.float32)
    return {
        "kv": joined[:, :width], "score": joined[:, width:], "ape": m.normal(4, width, dtype=torch.float32),
        "positions": m.positions(), "state_cache": torch.zeros(-(-t // 4), 4, 2 * width, dtype=torch.float32),
        "slot_mapping": torch.arange(t), "ratio": 4,
    }  # fmt: skip


def _slot_mapping(m: _Maker) -> dict[str, Any]:
    return {
        "positions": m.positions(), "slot_mapping": torch.arange(m.size.tokens),
        "token_to_req": m.tokens_i32(), "block_table": torch.cat((m.table(64), m.table(64)), 1), "ratio": 4,
        "rows": 64,
    }  # fmt: skip


def _compress(m: _Maker) -> dict[str, Any]:
    t, layout = m.size.tokens, m.c.main_layout
    return {
        "state_cache": m.normal(3 * t, 4, 2048, dtype=torch.float32), "positions": torch.full((t,), 7),
        "token_to_req": m.tokens_i32(), "slot_mapping": torch.arange(t),
        "block_table": torch.arange(3 * t, dtype=torch.int32).view(t, 3), "cos_sin": m.cos_sin(),
        "norm_weight": m.normal(512), "k_cache": m.pages(layout, 64, -(-t // 64)),
        "kv_slot_mapping": torch.arange(t), "ratio": 4, "head_dim": 512, "rows": 64, "layout": layout,
        "eps": 1e-6, "rotate": "none",
    }  # fmt: skip


def _index_q(m: _Maker) -> dict[str, Any]:
    t, heads = m.size.tokens, m.c.index_n_heads
    return {
        "positions": m.positions(), "q": m.normal(t, heads, 128), "cos_sin": m.cos_sin(),
        "weights": m.normal(t, heads), "softmax_scale": m.c.index_softmax_scale,
        "head_scale": m.c.index_head_scale, "format": m.c.index_format, "rotate": m.c.rotate,
    }  # fmt: skip


def _logits(m: _Maker) -> dict[str, Any]:
    t, layout = m.size.tokens, m.c.index_layout
    call = _index_q(m)
    queries, scales, weights = OPS["fused_indexer_q_rope_quant"].body(**call)
    return {
        "q": queries, "q_scales": scales, "weights": weights,
        "k_cache": m.pages(layout, 64, t * m.per_request(64)), "context_lens": m.lens(m.size.context),
        "token_to_req": m.tokens_i32(), "block_table": m.table(64), "rows": 64, "layout": layout,
        "max_len": m.size.context, "rotate": m.c.rotate,
    }  # fmt: skip


def _topk(m: _Maker) -> dict[str, Any]:
    logits = m.normal(m.size.tokens, m.size.context, dtype=torch.float32)
    return {"logits": logits, "context_lens": m.lens(m.size.context), "k": m.c.index_topk}


def _indexer(m: _Maker) -> dict[str, Any]:
    call = _logits(m)
    del call["max_len"]
    return {**call, "k": m.c.index_topk, "workspace_bytes": 64 << 20}


def _global(m: _Maker) -> dict[str, Any]:
    t, k = m.size.tokens, m.c.index_topk
    topk = (torch.arange(t * k, dtype=torch.int32) % m.size.context).view(t, k)
    return {
        "topk": topk, "token_to_req": m.tokens_i32(), "block_table": m.table(64),
        "is_valid": torch.ones(t, dtype=torch.bool), "rows": 64,
    }  # fmt: skip


def _combine(m: _Maker) -> dict[str, Any]:
    t, context, k = m.size.tokens, m.size.context, m.c.index_topk
    lens = torch.tensor([4 * context], dtype=torch.int32)
    return {
        "topk": torch.arange(k, dtype=torch.int32).repeat(t, 1),
        "query_start_loc": torch.tensor([0, t], dtype=torch.int32), "seq_lens": lens,
        "gather_lens": torch.full_like(lens, min(t + 127, 4 * context)), "window": 128, "ratio": 4,
        "top_k": k, "M": context + t + 127, "N": context,
    }  # fmt: skip


def _decode(m: _Maker) -> dict[str, Any]:
    t, layout, context = m.size.tokens, m.c.main_layout, m.size.context
    pages = t * m.per_request(64)
    slots = m.table(64)[:, :1] * 64 + torch.arange(min(context, 64), dtype=torch.int32)
    q = m.heads()
    return {
        "q": q, "swa_cache": m.pages(layout, 64, pages), "swa_slots": slots,
        "swa_lens": m.lens(slots.shape[1]), "extra_cache": m.pages(layout, 64, pages),
        "extra_slots": slots.flip(1), "extra_lens": m.lens(slots.shape[1] - 1),
        "attn_sink": m.normal(q.shape[1], dtype=torch.float32), "out": torch.zeros_like(q),
        "scale": 512**-0.5, "swa_rows": 64, "extra_rows": 64, "layout": layout, "extra_layout": layout,
    }  # fmt: skip


def _decode_turned(m: _Maker) -> dict[str, Any]:
    call = _decode(m)
    del call["out"]
    return {
        **call, "positions": m.positions(), "cos_sin": m.cos_sin(), "groups": m.c.o_groups,
        "scale_format": "none",
    }  # fmt: skip


def _prefill(m: _Maker) -> dict[str, Any]:
    t, context, q = m.size.tokens, m.size.context, m.heads()
    indices = torch.arange(context, dtype=torch.int32).repeat(t, 1)
    return {
        "q": q, "kv": m.normal(context, 512), "indices": indices, "lens": m.lens(context),
        "attn_sink": m.normal(q.shape[1], dtype=torch.float32), "out": torch.zeros_like(q),
        "scale": 512**-0.5,
    }  # fmt: skip


def _inverse(m: _Maker) -> dict[str, Any]:
    return {"o": m.heads(), "positions": m.positions(), "cos_sin": m.cos_sin()}


def _inverse_quant(m: _Maker) -> dict[str, Any]:
    return {**_inverse(m), "groups": m.c.o_groups, "scale_format": "f32"}


def _grouped(m: _Maker) -> dict[str, Any]:
    c = m.c
    weight = m.normal(c.o_groups * c.o_lora_rank, c.num_attention_heads * 512 // c.o_groups, std=0.02)
    return {"o": m.heads(), "o_scales": None, "wo_a": weight, "wo_a_scales": None, "groups": c.o_groups}


def _linear(m: _Maker) -> dict[str, Any]:
    c = m.c
    return {
        "x": m.normal(m.size.tokens, c.hidden_size),
        "weight": m.normal(c.q_lora_rank, c.hidden_size, std=0.02), "scales": None, "global_scale": None,
        "format": "bf16", "out_dtype": torch.bfloat16,
    }  # fmt: skip


_MAKERS: dict[str, Callable[[_Maker], dict[str, Any]]] = {
    "fused_q_kv_rmsnorm": _norm,
    "fused_qnorm_rope_kv_insert": _qnorm_insert,
    "quantize_and_insert_k_cache": _insert,
    "dequantize_and_gather_k_cache": _gather,
    "save_partial_states": _states,
    "compressed_slot_mapping": _slot_mapping,
    "compress_norm_rope_store": _compress,
    "fused_indexer_q_rope_quant": _index_q,
    "indexer_logits": _logits,
    "indexer_topk": _topk,
    "sparse_indexer": _indexer,
    "compute_global_topk_indices_and_lens": _global,
    "combine_topk_swa_indices": _combine,
    "sparse_decode": _decode,
    "sparse_prefill": _prefill,
    "inverse_rope": _inverse,
    "fused_inv_rope_fp8_quant": _inverse_quant,
    "fused_sparse_decode_inv_rope": _decode_turned,
    "grouped_output_projection": _grouped,
    "linear": _linear,
}
