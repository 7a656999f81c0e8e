"""The op contract: one file per op, imported in the order of the data flow."""

from __future__ import annotations

from importlib import import_module

from dsv4core.ops._bind import ABSENT, PORTABLE, BoundOp, OpImpl, OpTable
from dsv4core.ops._op import EXACT, OPS, Op, Tolerance

__all__ = ["ABSENT", "EXACT", "OPS", "PORTABLE", "BoundOp", "Op", "OpImpl", "OpTable", "Tolerance"]

for _name in (
    "fused_q_kv_rmsnorm",
    "fused_qnorm_rope_kv_insert",
    "quantize_and_insert_k_cache",
    "dequantize_and_gather_k_cache",
    "save_partial_states",
    "compressed_slot_mapping",
    "compress_norm_rope_store",
    "fused_indexer_q_rope_quant",
    "indexer_logits",
    "indexer_topk",
    "sparse_indexer",
    "compute_global_topk_indices_and_lens",
    "combine_topk_swa_indices",
    "sparse_decode",
    "sparse_prefill",
    "inverse_rope",
    "fused_inv_rope_fp8_quant",
    "fused_sparse_decode_inv_rope",
    "grouped_output_projection",
    "linear",
):
    import_module(f"{__name__}.{_name}")  # declares itself in OPS
