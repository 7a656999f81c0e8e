"""Sizes of the released models, more tokens than 16 bits count, lists of a million tokens."""

from __future__ import annotations

from typing import Any

import torch

from dsv4core_conformance.case import case
from dsv4core_conformance.contracts import CONTRACTS
from dsv4core_conformance.families._calls import ATTENTION, INDEXER, TURNED
from dsv4core_conformance.inputs import make
from dsv4core_conformance.subject import Subject

CEILING = (65_535, 65_536, 65_537)


@case("op/indexer_topk/shapes/tokens/{tokens}", ops=("indexer_topk",), tokens=CEILING, catches=("E14",))
def many_lists(s: Subject, tokens: int) -> None:
    """Around 65,536 tokens nothing is cut off."""
    s.check("indexer_topk", make("indexer_topk", tokens=tokens, width=5, k=2, lens="mixed"))


@case(
    "op/compute_global_topk_indices_and_lens/shapes/tokens/{tokens}",
    ops=("compute_global_topk_indices_and_lens",),
    tokens=CEILING,
    catches=("E14",),
)
def many_slots(s: Subject, tokens: int) -> None:
    """Around 65,536 tokens nothing is cut off."""
    op = "compute_global_topk_indices_and_lens"
    s.check(op, make(op, tokens=tokens, k=2, requests=70))


@case("op/linear/shapes/tokens/{tokens}", ops=("linear",), tokens=CEILING, catches=("E14",))
def many_rows(s: Subject, tokens: int) -> None:
    """Around 65,536 tokens nothing is cut off."""
    s.check("linear", make("linear", tokens=tokens, inputs=16, outputs=8))


@case(
    "op/combine_topk_swa_indices/shapes/tokens/{tokens}",
    ops=("combine_topk_swa_indices",),
    tokens=CEILING[::2],
    catches=("E14",),
)
def many_combined(s: Subject, tokens: int) -> None:
    """Around 65,536 queries of a request, and a request that starts behind them."""
    op = "combine_topk_swa_indices"
    s.check(op, make(op, queries=(tokens, 3), prefixes=(0, 5), window=2, top_k=1, spare=0))


@case(
    "op/{op}/shapes/tokens/{tokens}",
    op=("sparse_prefill", "fused_indexer_q_rope_quant"),
    tokens=CEILING[::2],
    level="extended",
    limit=180.0,
    catches=("E14",),
)
def many_queries(s: Subject, op: str, tokens: int) -> None:
    """Around 65,536 queries nothing is cut off."""
    s.check(op, make(op, tokens=tokens, heads=1, **({"window": 2} if op == "sparse_prefill" else {})))


@case(
    "op/sparse_decode/shapes/tokens/65537",
    ops=("sparse_decode",),
    level="extended",
    limit=180.0,
    catches=("E14",),
)
def many_decodes(s: Subject) -> None:
    """More than 65,536 tokens of decode at once."""
    s.check("sparse_decode", make("sparse_decode", tokens=65_537, heads=1, window=2, extra=None))


THOUSAND: dict[str, dict[str, Any]] = {
    "sparse_decode": {"heads": 2, "window": 9, "extra": 5},
    "sparse_prefill": {"heads": 2, "window": 9},
    "fused_sparse_decode_inv_rope": {"heads": 2, "window": 9, "extra": 5},
    "indexer_logits": {"heads": 2, "lens": [(7 * t) % 70 for t in range(1100)], "requests": 20},
    "sparse_indexer": {"heads": 2, "lens": [(7 * t) % 70 for t in range(1100)], "requests": 20},
    "fused_qnorm_rope_kv_insert": {"heads": 1},
    "inverse_rope": {"heads": 1},
    "fused_inv_rope_fp8_quant": {"heads": 2},
    "save_partial_states": {"pages": 300, "width": 256},
    "linear": {"inputs": 64, "outputs": 24},
    "compress_norm_rope_store": {"lengths": (14,) * 80, "head_dim": 128},
    "compressed_slot_mapping": {"lengths": (14,) * 80},
    "dequantize_and_gather_k_cache": {"lengths": (14,) * 80},
}
"""Options for 1,100 tokens, or 80 requests."""


@case("op/{op}/shapes/tokens/1100", op=tuple(CONTRACTS), catches=("L2", "E14", "D13"))
def a_prefill_of_tokens(s: Subject, op: str) -> None:
    """As many tokens as a step of prefill has, and requests by the dozen: behind every tile of a kernel."""
    if op == "combine_topk_swa_indices":
        s.check(op, make(op, queries=(14,) * 80, prefixes=tuple(range(0, 400, 5)), window=9, top_k=5))
        return
    by_length = {"lens", "lengths"} & set(THOUSAND.get(op, {}))
    s.check(op, make(op, **({} if by_length else {"tokens": 1100}), **THOUSAND.get(op, {})))


@case(
    "op/{op}/shapes/long_list/{width}",
    op=(*ATTENTION, TURNED),
    width=(2_049, 8_320),
    catches=("E7", "H7", "J3"),
)
def long_lists(s: Subject, op: str, width: int) -> None:
    """Lists as long as the entries of a million tokens at ratio 128 and a window beside them."""
    s.check(op, make(op, tokens=2, heads=2, window=width, lens="full", sink="zero", spread=0.3))
    if op != "sparse_prefill":
        options = {"window": 128, "extra": width - 128, "lens": "full", "extra_lens": "full"}
        s.check(op, make(op, tokens=2, heads=2, sink="zero", spread=0.3, **options))


@case("op/combine_topk_swa_indices/shapes/million", ops=("combine_topk_swa_indices",), catches=("E7", "D14"))
def list_of_a_million_tokens(s: Subject) -> None:
    """All 8,192 entries of ratio 128 that the last tokens of a million see."""
    options = {"ratio": 128, "top_k": 8192, "spare": 0}
    s.check(
        "combine_topk_swa_indices",
        make("combine_topk_swa_indices", queries=(3, 1), prefixes=((1 << 20) - 3, 9), **options),
    )


@case("op/{op}/shapes/context/{context}", op=INDEXER, context=(70_000,), catches=("G9", "L1", "L8"))
@case(
    "op/{op}/shapes/context/{context}",
    op=INDEXER,
    context=(262_144,),
    limit=180.0,
    level="extended",
    catches=("G9", "L1", "L8"),
)
def more_entries_than_16_bits_count(s: Subject, op: str, context: int) -> None:
    """Entries behind 65,536: the pages of a table are few and come again, so equal scores are 2,560 apart."""
    options = {"requests": 1, "heads": 1, "kind": "dyadic", "physical": 40, "weights": "positive"}
    s.check(
        op,
        make(op, lens=[context, context - 4_465], **options, **({"k": 64} if op == "sparse_indexer" else {})),
    )


MODELS: dict[str, tuple[dict[str, Any], ...]] = {
    "fused_q_kv_rmsnorm": ({"q_width": 1024}, {"q_width": 1536}, {"q_width": 7168}),
    "fused_qnorm_rope_kv_insert": ({"heads": 64}, {"heads": 128}),
    "inverse_rope": ({"heads": 64}, {"heads": 128}),
    "fused_inv_rope_fp8_quant": ({"heads": 64, "groups": 8}, {"heads": 128, "groups": 16}),
    "grouped_output_projection": ({"heads": 16, "groups": 2, "lora": 1024},),
    "linear": (
        {"inputs": 7168, "outputs": 512},
        {"inputs": 1536, "outputs": 4100},
        {"inputs": 16_384, "outputs": 64},
    ),
    "indexer_logits": ({"heads": 64}, {"heads": 128}),
    "sparse_indexer": ({"heads": 64}, {"heads": 128}),
}
"""Sizes of V4-Flash and V4-Pro, or the widest of their dimensions with fewer of the others."""


@case("op/{op}/shapes/released_models", op=tuple(MODELS), catches=("J3", "L9", "M5", "C6"))
def released_models(s: Subject, op: str) -> None:
    """Heads and widths of the released models, which small cases leave out."""
    for options in MODELS[op]:
        s.check(op, make(op, tokens=2, **options))


@case(
    "op/dequantize_and_gather_k_cache/shapes/long",
    ops=("dequantize_and_gather_k_cache",),
    catches=("N5", "G10"),
)
def long_gathers(s: Subject) -> None:
    """Thousands of rows of one request, and the last rows of one with more than 65,536."""
    op = "dequantize_and_gather_k_cache"
    s.check(op, make(op, lengths=(4300, 3), gather=(4300, 3)))
    a = make(op, lengths=(200, 70), gather=(130, 70))
    behind = torch.full((2, 1100), -1, dtype=torch.int32)
    a["block_table"] = torch.cat((behind, a["block_table"]), dim=1)
    a["seq_lens"] = a["seq_lens"] + 1100 * a["rows"]
    s.check(op, a)


@case("op/combine_topk_swa_indices/shapes/gathered", ops=("combine_topk_swa_indices",), catches=("E8", "K7"))
def more_rows_gathered(s: Subject) -> None:
    """A request's rows of the workspace begin where gather_lens says, also where more were gathered."""
    op = "combine_topk_swa_indices"
    for more in (1, 7, 10_000):
        a = make(op)
        a["gather_lens"] = torch.minimum(a["gather_lens"] + more, a["seq_lens"])
        a["M"] = a["N"] + int(a["gather_lens"].max()) + 3
        s.check(op, a)
