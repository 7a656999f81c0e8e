"""References of the ops that read: indexer, lists, attention and projections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import (
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

ATTENDING: dict[str, Callable[[dict[str, Any], dict[str, str]], list[Any]]] = {
    "fused_indexer_q_rope_quant": fused_indexer_q_rope_quant.expected,
    "indexer_logits": indexer_logits.expected,
    "indexer_topk": indexer_topk.expected,
    "sparse_indexer": sparse_indexer.expected,
    "compute_global_topk_indices_and_lens": compute_global_topk_indices_and_lens.expected,
    "combine_topk_swa_indices": combine_topk_swa_indices.expected,
    "sparse_decode": sparse_decode.expected,
    "sparse_prefill": sparse_prefill.expected,
    "grouped_output_projection": grouped_output_projection.expected,
    "linear": linear.expected,
}
