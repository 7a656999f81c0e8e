"""The ops that write rows into pages, by short names, and which rows of a call are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dsv4core_conformance.inputs.pages import Place
from dsv4core_conformance.reference import rows as reference

Writer = dict[str, Any]

INSERT: Writer = {"name": "insert", "op": "fused_qnorm_rope_kv_insert", "options": {"heads": 1}}
WRITE: Writer = {"name": "write", "op": "quantize_and_insert_k_cache", "options": {}}
COMPRESS4: Writer = {"name": "compress4", "op": "compress_norm_rope_store", "options": {"lengths": (21, 9)}}
COMPRESS128: Writer = {
    "name": "compress128",
    "op": "compress_norm_rope_store",
    "options": {"ratio": 128, "lengths": (256, 130), "starts": (100, 120)},
}
INDEX4: Writer = {
    "name": "compress4",
    "op": "compress_norm_rope_store",
    "options": {"lengths": (21, 9), "head_dim": 128},
}
MAIN_WRITERS = (INSERT, WRITE, COMPRESS4, COMPRESS128)
"""Writers of rows of 512 values; `options` go to `inputs.make`."""
INDEX_WRITERS = (INDEX4,)
"""Writers of the indexer's rows of 128 values."""

PACKED: Place = {"lead": 48, "gap": 112}
"""Pages that lie in a larger storage; 16-byte aligned, as the cache's own rule has it."""
UNALIGNED: Place = {"lead": 33, "gap": 7}
"""A place at odd distances: the op contract asks for no alignment."""
PAGES = {
    "fused_qnorm_rope_kv_insert": ("k_cache",),
    "quantize_and_insert_k_cache": ("k_cache",),
    "dequantize_and_gather_k_cache": ("k_cache",),
    "save_partial_states": ("state_cache",),
    "compress_norm_rope_store": ("k_cache", "state_cache"),
    "indexer_logits": ("k_cache",),
    "sparse_indexer": ("k_cache",),
    "sparse_decode": ("swa_cache", "extra_cache"),
    "fused_sparse_decode_inv_rope": ("swa_cache", "extra_cache"),
}
"""Arguments that are pages, by op."""


def written_slots(op: str, arguments: Mapping[str, Any]) -> np.ndarray:
    """Slots of `k_cache` that a call writes. Shapes: -> i64 [n]"""
    if op != "compress_norm_rope_store":
        slots = arguments["slot_mapping"].numpy()
        return slots[slots >= 0]
    own = arguments["slot_mapping"].numpy()
    target = arguments["kv_slot_mapping"].numpy()[: len(own)]
    return target[(own >= 0) & (target >= 0)]


def written_bytes(op: str, arguments: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Page of each written row and the places of its front and tail bytes there.

    Shapes: -> i64 [n], i64 [n, front], i64 [n, tail]
    """
    return reference.places(arguments["layout"], written_slots(op, arguments), arguments["rows"])
