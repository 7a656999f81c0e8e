"""References of the ops that write and read caches, and of the roundings around them."""

from __future__ import annotations

from . import (
    compress_norm_rope_store,
    compressed_slot_mapping,
    dequantize_and_gather_k_cache,
    fused_inv_rope_fp8_quant,
    fused_q_kv_rmsnorm,
    fused_qnorm_rope_kv_insert,
    inverse_rope,
    quantize_and_insert_k_cache,
    save_partial_states,
)

CACHE = {
    "fused_q_kv_rmsnorm": fused_q_kv_rmsnorm.expected,
    "fused_qnorm_rope_kv_insert": fused_qnorm_rope_kv_insert.expected,
    "quantize_and_insert_k_cache": quantize_and_insert_k_cache.expected,
    "dequantize_and_gather_k_cache": dequantize_and_gather_k_cache.expected,
    "save_partial_states": save_partial_states.expected,
    "compressed_slot_mapping": compressed_slot_mapping.expected,
    "compress_norm_rope_store": compress_norm_rope_store.expected,
    "inverse_rope": inverse_rope.expected,
    "fused_inv_rope_fp8_quant": fused_inv_rope_fp8_quant.expected,
}
