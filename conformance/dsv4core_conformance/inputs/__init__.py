"""Inputs of single ops: `make(op, **options)` gives the arguments of one call by name, on the host.

Options say what a case is about (layout, rows per page, slots, magnitudes, place in memory, seed, ...); what
they leave open has a small ordinary default. Every tensor has memory of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dsv4core_conformance.inputs import (
    combine_topk_swa_indices,
    compress_norm_rope_store,
    compressed_slot_mapping,
    compute_global_topk_indices_and_lens,
    dequantize_and_gather_k_cache,
    fused_indexer_q_rope_quant,
    fused_inv_rope_fp8_quant,
    fused_q_kv_rmsnorm,
    fused_qnorm_rope_kv_insert,
    fused_sparse_decode_inv_rope,
    grouped_output_projection,
    indexer_logits,
    indexer_topk,
    inverse_rope,
    linear,
    quantize_and_insert_k_cache,
    save_partial_states,
    sparse_decode,
    sparse_indexer,
    sparse_prefill,
)

MAKERS: dict[str, Callable[..., dict[str, Any]]] = {
    "fused_q_kv_rmsnorm": fused_q_kv_rmsnorm.make,
    "fused_qnorm_rope_kv_insert": fused_qnorm_rope_kv_insert.make,
    "quantize_and_insert_k_cache": quantize_and_insert_k_cache.make,
    "dequantize_and_gather_k_cache": dequantize_and_gather_k_cache.make,
    "save_partial_states": save_partial_states.make,
    "compressed_slot_mapping": compressed_slot_mapping.make,
    "compress_norm_rope_store": compress_norm_rope_store.make,
    "fused_indexer_q_rope_quant": fused_indexer_q_rope_quant.make,
    "indexer_logits": indexer_logits.make,
    "indexer_topk": indexer_topk.make,
    "sparse_indexer": sparse_indexer.make,
    "compute_global_topk_indices_and_lens": compute_global_topk_indices_and_lens.make,
    "combine_topk_swa_indices": combine_topk_swa_indices.make,
    "sparse_decode": sparse_decode.make,
    "sparse_prefill": sparse_prefill.make,
    "inverse_rope": inverse_rope.make,
    "fused_inv_rope_fp8_quant": fused_inv_rope_fp8_quant.make,
    "fused_sparse_decode_inv_rope": fused_sparse_decode_inv_rope.make,
    "grouped_output_projection": grouped_output_projection.make,
    "linear": linear.make,
}


def make(op: str, **options: Any) -> dict[str, Any]:
    """Arguments of a call of `op`. Raises KeyError for an unknown op, TypeError for an unknown option."""
    return MAKERS[op](**options)
