"""Makers of arguments of the ops that read: indexer, lists, attention and projections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dsv4core_conformance.inputs import (
    combine_topk_swa_indices,
    compute_global_topk_indices_and_lens,
    fused_indexer_q_rope_quant,
    grouped_output_projection,
    indexer_logits,
    indexer_topk,
    linear,
    sparse_decode,
    sparse_indexer,
    sparse_prefill,
)

MAKERS: dict[str, Callable[..., dict[str, Any]]] = {
    "fused_indexer_q_rope_quant": fused_indexer_q_rope_quant.make,
    "indexer_logits": indexer_logits.make,
    "indexer_topk": indexer_topk.make,
    "sparse_indexer": sparse_indexer.make,
    "compute_global_topk_indices_and_lens": compute_global_topk_indices_and_lens.make,
    "combine_topk_swa_indices": combine_topk_swa_indices.make,
    "sparse_decode": sparse_decode.make,
    "sparse_prefill": sparse_prefill.make,
    "grouped_output_projection": grouped_output_projection.make,
    "linear": linear.make,
}
