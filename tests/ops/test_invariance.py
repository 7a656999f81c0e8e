"""Every op: a token alone equals the token in its batch, and the number of threads changes no byte."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dsv4core.config import AttentionConfig
from dsv4core.ops import OPS
from dsv4core.samples import Size, sample

# Arguments that have one row per token. Everything else is shared: pages, tables, weights.
PER_TOKEN = {
    "fused_q_kv_rmsnorm": ("qr", "kv"),
    "fused_qnorm_rope_kv_insert": ("q", "kv", "positions", "slot_mapping"),
    "quantize_and_insert_k_cache": ("k", "slot_mapping"),
    "dequantize_and_gather_k_cache": ("out", "seq_lens", "gather_lens", "block_table"),
    "save_partial_states": ("kv", "score", "positions", "slot_mapping"),
    "compressed_slot_mapping": ("positions", "slot_mapping", "token_to_req"),
    "compress_norm_rope_store": ("positions", "token_to_req", "slot_mapping", "kv_slot_mapping"),
    "fused_indexer_q_rope_quant": ("positions", "q", "weights"),
    "indexer_logits": ("q", "q_scales", "weights", "context_lens", "token_to_req"),
    "indexer_topk": ("logits", "context_lens"),
    "sparse_indexer": ("q", "q_scales", "weights", "context_lens", "token_to_req"),
    "compute_global_topk_indices_and_lens": ("topk", "token_to_req", "is_valid"),
    "sparse_decode": ("q", "swa_slots", "swa_lens", "extra_slots", "extra_lens", "out"),
    "sparse_prefill": ("q", "indices", "lens", "out"),
    "inverse_rope": ("o", "positions"),
    "fused_inv_rope_fp8_quant": ("o", "positions"),
    "fused_sparse_decode_inv_rope": (
        "q",
        "swa_slots",
        "swa_lens",
        "extra_slots",
        "extra_lens",
        "positions",
    ),
    "grouped_output_projection": ("o", "o_scales"),
    "linear": ("x",),
}  # combine_topk_swa_indices takes requests: its own file splits it
SIZES = {
    "vllm": Size(tokens=9, context=70),
    "official": Size(tokens=9, context=70, config=AttentionConfig.preset("tiny", profile="official")),
    "sglang": Size(tokens=9, context=70, config=AttentionConfig.preset("tiny", profile="sglang")),
    "other pages": Size(
        tokens=9,
        context=70,
        config=AttentionConfig.preset("tiny", main_layout="fp8_row", index_layout="index_fp8_ue8m0x4"),
    ),
    "math": Size(tokens=9, context=70, config=AttentionConfig.preset("tiny", profile="math")),
}


def arguments(name: str, size: Size) -> dict[str, Any]:
    made = sample(name, size)
    if size.config.profile == "math":
        made = {
            k: v.float() if isinstance(v, torch.Tensor) and v.dtype == torch.bfloat16 else v
            for k, v in made.items()
        }
        if "out_dtype" in made:
            made["out_dtype"] = torch.float32
    return made


def results(name: str, ops: Any, made: dict[str, Any]) -> list[torch.Tensor | None]:
    got = getattr(ops, name)(**made)
    return list(got) if isinstance(got, tuple) else [got]


def raw(x: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else x.contiguous().flatten().view(torch.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PER_TOKEN)
def test_a_token_alone(ops, name: str, size: str) -> None:
    together, apart = arguments(name, SIZES[size]), arguments(name, SIZES[size])
    whole = results(name, ops, together)
    for t in range(SIZES[size].tokens):
        one = {
            k: v[t : t + 1] if k in PER_TOKEN[name] and v is not None else v for k, v in apart.items()
        }  # views: what is written lands in `apart`
        for part, full in zip(results(name, ops, one), whole, strict=True):
            if full is not None:
                assert torch.equal(raw(part[:1]), raw(full[t : t + 1])), t
    for written in OPS[name].mutates:
        assert torch.equal(raw(together[written]), raw(apart[written]))


@pytest.mark.parametrize("name", OPS)
def test_threads(ops, name: str) -> None:
    size = Size(tokens=16, context=70)
    runs = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        made = sample(name, size)
        runs.append([*results(name, ops, made), *(made[w] for w in OPS[name].mutates)])
    for a, b in zip(*runs, strict=True):
        assert (a is None and b is None) or torch.equal(raw(a), raw(b))


def test_every_op_is_here() -> None:
    assert set(PER_TOKEN) | {"combine_topk_swa_indices"} == set(OPS)
