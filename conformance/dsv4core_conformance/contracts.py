"""How exact every op must be: section 2 of the canonical arithmetic, stated here on its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["exact", "attention", "turned", "logits", "list", "matmul"]


@dataclass(frozen=True)
class OpContract:
    """One op's contract: how results compare, which arguments it writes, the bound where there is one.

    `results` holds the dtype of each result: a name, "=x" for that of argument x, "@x" for the one that
    parameter x names, "" where values tell. `optional`: a backend may do without, and is not the less whole.
    """

    kind: Kind
    writes: tuple[str, ...] = ()
    bound: float = 0.0
    results: tuple[str, ...] = ()
    optional: bool = False


ATTENTION_BOUND = 4e-3  # L2 per (token, head), of the L2 norm of sum_j p_j |k_j|
LOGITS_BOUND = 1e-5  # of kscale * sum_h |w_h| sum_d |q_hd k_d|
MATMUL_BOUND = 4e-3  # relative L2 against float64 of the same operands
LSE_ABSOLUTE, LSE_RELATIVE = 1e-5, 1e-6
DECODE_PREFILL_CPU, DECODE_PREFILL = 2e-3, 4e-3

CONTRACTS: dict[str, OpContract] = {
    "fused_q_kv_rmsnorm": OpContract("exact", results=("=qr", "=kv")),
    "fused_qnorm_rope_kv_insert": OpContract("exact", ("k_cache",), results=("=q",)),
    "quantize_and_insert_k_cache": OpContract("exact", ("k_cache",)),
    "dequantize_and_gather_k_cache": OpContract("exact", ("out",)),
    "save_partial_states": OpContract("exact", ("state_cache",)),
    "compressed_slot_mapping": OpContract("exact", results=("int64",)),
    "compress_norm_rope_store": OpContract("exact", ("k_cache",)),
    "fused_indexer_q_rope_quant": OpContract("exact", results=("@format", "uint8", "f32")),
    "indexer_logits": OpContract("logits", bound=LOGITS_BOUND, results=("f32",)),
    "indexer_topk": OpContract("exact", results=("int32",)),
    "sparse_indexer": OpContract("list", bound=LOGITS_BOUND, results=("int32",)),
    "compute_global_topk_indices_and_lens": OpContract("exact", results=("int32", "int32")),
    "combine_topk_swa_indices": OpContract("exact", results=("int32", "int32")),
    "sparse_decode": OpContract("attention", ("out",), ATTENTION_BOUND, ("f32",)),
    "sparse_prefill": OpContract("attention", ("out",), ATTENTION_BOUND, ("f32",)),
    "inverse_rope": OpContract("exact", results=("=o",)),
    "fused_inv_rope_fp8_quant": OpContract("exact", results=("float8_e4m3fn", "")),
    "fused_sparse_decode_inv_rope": OpContract("turned", bound=ATTENTION_BOUND, optional=True),
    "grouped_output_projection": OpContract("matmul", bound=MATMUL_BOUND, results=("@o",)),
    "linear": OpContract("matmul", bound=MATMUL_BOUND, results=("@out_dtype",)),
}

NAMED_TYPES = {
    "fp8": "float8_e4m3fn", "fp8_f32": "float8_e4m3fn", "mxfp4": "uint8", "f32": "f32",
    "torch.bfloat16": "bf16", "torch.float32": "f32",
}  # fmt: skip
"""Dtypes by the words that parameters name them with."""
