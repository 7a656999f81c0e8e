"""What every op must give: one function per op over numpy arrays, by name.

`REFERENCE[op](arguments, dtypes)` takes tensors as arrays (bf16 as float32 of the same value, one-byte floats
as bytes) with `dtypes` naming what they were, writes in place what the op writes, and returns the results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import (
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

REFERENCE: dict[str, Callable[[dict[str, Any], dict[str, str]], list[Any]]] = {
    "fused_q_kv_rmsnorm": fused_q_kv_rmsnorm.expected,
    "fused_qnorm_rope_kv_insert": fused_qnorm_rope_kv_insert.expected,
    "quantize_and_insert_k_cache": quantize_and_insert_k_cache.expected,
    "dequantize_and_gather_k_cache": dequantize_and_gather_k_cache.expected,
    "save_partial_states": save_partial_states.expected,
    "compressed_slot_mapping": compressed_slot_mapping.expected,
    "compress_norm_rope_store": compress_norm_rope_store.expected,
    "fused_indexer_q_rope_quant": fused_indexer_q_rope_quant.expected,
    "indexer_logits": indexer_logits.expected,
    "indexer_topk": indexer_topk.expected,
    "sparse_indexer": sparse_indexer.expected,
    "compute_global_topk_indices_and_lens": compute_global_topk_indices_and_lens.expected,
    "combine_topk_swa_indices": combine_topk_swa_indices.expected,
    "sparse_decode": sparse_decode.expected,
    "sparse_prefill": sparse_prefill.expected,
    "inverse_rope": inverse_rope.expected,
    "fused_inv_rope_fp8_quant": fused_inv_rope_fp8_quant.expected,
    "fused_sparse_decode_inv_rope": fused_sparse_decode_inv_rope.expected,
    "grouped_output_projection": grouped_output_projection.expected,
    "linear": linear.expected,
}
