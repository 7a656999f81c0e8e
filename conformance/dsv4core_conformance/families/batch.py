"""Cases of the family BATCH: a token's result does not depend on the tokens around it."""

from __future__ import annotations

from typing import Any

import torch

from dsv4core_conformance.case import case
from dsv4core_conformance.contracts import CONTRACTS
from dsv4core_conformance.families import _batch_layers as layers
from dsv4core_conformance.families._calls import TOKENS, at_tokens, produced, same_bytes, with_tokens
from dsv4core_conformance.families._layers import KINDS, LAYER_LAYOUTS
from dsv4core_conformance.hosts import cloned
from dsv4core_conformance.inputs import make
from dsv4core_conformance.subject import LAYER_OPS, Subject

COUNT = 65
PRODUCTS = ("grouped_output_projection", "linear")
SIZES = (1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64)
BATCHES: dict[str, dict[str, Any]] = {
    "fused_indexer_q_rope_quant": {"tokens": COUNT},
    "indexer_logits": {"lens": [(17 * t) % 140 for t in range(COUNT)], "requests": 5, "max_len": 140},
    "indexer_topk": {"tokens": COUNT, "kind": "ties", "lens": "mixed", "k": 16},
    "sparse_indexer": {"lens": [(17 * t) % 140 for t in range(COUNT)], "requests": 5, "k": 16},
    "compute_global_topk_indices_and_lens": {"tokens": COUNT},
    "sparse_decode": {"tokens": COUNT, "heads": 3, "lens": "mixed", "extra_lens": "mixed"},
    "sparse_prefill": {"tokens": COUNT, "heads": 3, "lens": "mixed"},
    "fused_sparse_decode_inv_rope": {
        "tokens": COUNT,
        "heads": 4,
        "lens": "mixed",
        "extra_lens": "mixed",
        "scale_format": "f32",
    },
    "grouped_output_projection": {"tokens": COUNT},
    "linear": {
        "tokens": COUNT,
        "inputs": 1024,
    },  # fewer inputs can have sums without a rounding, in any order
}
FORMATS = (
    {"name": "linear/batch/fp8_block", "op": "linear", "more": {"format": "fp8_block"}},
    {"name": "linear/batch/fp8_block_f32", "op": "linear", "more": {"format": "fp8_block", "scale": "f32"}},
    {"name": "linear/batch/nvfp4", "op": "linear", "more": {"format": "nvfp4"}},
    {"name": "linear/batch/mxfp4", "op": "linear", "more": {"format": "mxfp4"}},
    {"name": "linear/batch/to_f32", "op": "linear", "more": {"out": "f32"}},
    {
        "name": "grouped_output_projection/batch/fp8",
        "op": "grouped_output_projection",
        "more": {"o": "e4m3_ue8m0x4", "weight": "e8m0"},
    },
    {"name": "sparse_indexer/batch/index_mxfp4", "op": "sparse_indexer", "more": {}, "layout": "index_mxfp4"},
    {"name": "sparse_decode/batch/bf16_row", "op": "sparse_decode", "more": {}, "layout": "bf16_row"},
)


@case("op/{op}/batch/alone", op=tuple(BATCHES), catches=("L5", "L6", "K8"))
def alone(s: Subject, op: str) -> None:
    """A token alone gives the bytes that it gives among 64 others."""
    _alone(s, op, BATCHES[op])


@case("op/{format}", format=FORMATS, catches=("L5", "L6"))
def alone_in_every_format(s: Subject, op: str, more: dict[str, Any], layout: str = "") -> None:
    """The same with other weights and layouts."""
    _alone(s, op, {**BATCHES[op], **more, **({"layout": layout} if layout else {})})


@case("op/{op}/batch/sizes", op=tuple(BATCHES), catches=("L5", "L6", "H3", "D1"))
def sizes(s: Subject, op: str) -> None:
    """The first tokens of a batch, whatever its size."""
    whole, results = _whole(s, op, BATCHES[op])
    for size in SIZES:
        first = torch.arange(size)
        got = produced(s, op, with_tokens(op, whole, first))
        same_bytes(f"{op}: the first {size} of {COUNT} tokens", got, at_tokens(results, first))


@case(
    "op/{op}/batch/order/{order}",
    op=tuple(BATCHES),
    order=("reversed", "shuffled", "twice"),
    catches=("E12", "L5", "H3"),
)
def order(s: Subject, op: str, order: str) -> None:
    """Tokens in another order, or twice in a batch, give their bytes."""
    whole, results = _whole(s, op, BATCHES[op])
    every = torch.arange(COUNT)
    tokens = {"reversed": every.flip(0), "shuffled": every * 17 % COUNT, "twice": every // 2}[order]
    got = produced(s, op, with_tokens(op, whole, tokens))
    same_bytes(f"{op}: tokens {order}", got, at_tokens(results, tokens))


@case(
    "op/{op}/batch/requests",
    op=("indexer_logits", "sparse_indexer", "compute_global_topk_indices_and_lens"),
    catches=("E12", "L6"),
)
def request_order(s: Subject, op: str) -> None:
    """Requests in other rows of the tables, as after a reordering of the batch, change nothing."""
    whole, results = _whole(s, op, BATCHES[op])
    moved = cloned(whole)
    count = moved["block_table"].shape[0]
    moved["block_table"] = moved["block_table"].flip(0).contiguous()
    moved["token_to_req"] = count - 1 - moved["token_to_req"]
    same_bytes(f"{op}: requests reversed", s.check(op, moved).results, results)


@case("op/{op}/batch/padded/{bucket}", op=tuple(BATCHES), bucket=(72, 128), catches=("C5", "H1", "M2"))
def padded_to_a_bucket(s: Subject, op: str, bucket: int) -> None:
    """Padding tokens behind the live ones change no bit of them, and are themselves as the contract says."""
    whole, results = _whole(s, op, BATCHES[op])
    padded = with_tokens(op, whole, torch.arange(bucket).clamp(max=COUNT - 1))
    for name in TOKENS[op]:
        value = padded[name]
        if value is None:
            continue
        listed = value.dtype == torch.int32 and value.ndim == 2
        plain = value.view(torch.uint8) if value.element_size() == 1 and value.dtype != torch.bool else value
        plain[COUNT:] = -1 if listed else 0
    live = torch.arange(COUNT)
    got = s.check(op, padded).results
    got += [padded[name] for name in CONTRACTS[op].writes]
    same_bytes(f"{op}: {COUNT} tokens in a bucket of {bucket}", at_tokens(got, live), results)


def _whole(s: Subject, op: str, options: dict[str, Any]) -> tuple[dict[str, Any], list[torch.Tensor | None]]:
    """A judged call with all tokens: its arguments as they were, and everything it gives.

    Rows of products are equal where a backend promises it: canonical arithmetic asks it of the CPU alone.
    """
    if op in PRODUCTS:
        s.need_feature("batch_invariant_linear")
    arguments = make(op, **options)
    before = cloned(arguments)
    results = s.check(op, arguments).results
    return before, [*results, *(arguments[name] for name in CONTRACTS[op].writes)]


def _alone(s: Subject, op: str, options: dict[str, Any]) -> None:
    whole, results = _whole(s, op, options)
    for t in (0, 1, 2, 31, 32, 40, COUNT - 1):
        one = torch.tensor([t])
        got = produced(s, op, with_tokens(op, whole, one))
        same_bytes(f"{op}: token {t} alone", got, at_tokens(results, one))


@case(
    "layer/{kind}/batch/alone", kind=KINDS, ops=LAYER_OPS, layouts=LAYER_LAYOUTS, catches=("E12", "C5", "J8")
)
def a_request_alone_and_in_a_batch(s: Subject, kind: str) -> None:
    """Requests that share steps have the outputs and bytes that each has in a cache of its own."""
    layers.alone_and_together(s, kind, bits=False)


@case(
    "layer/{kind}/batch/same_bits",
    kind=KINDS,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    needs=("batch_invariant_linear",),
    catches=("L5", "L6"),
)
def a_request_has_the_same_bits_in_a_batch(s: Subject, kind: str) -> None:
    """Where projections do not depend on the batch, whole layers do not either."""
    layers.alone_and_together(s, kind, bits=True)


@case("layer/{kind}/batch/order", kind=KINDS, ops=LAYER_OPS, layouts=LAYER_LAYOUTS, catches=("E12", "H3"))
def any_order_of_requests(s: Subject, kind: str) -> None:
    """Requests change places, leave and come: states and pages belong to the request and not to its row."""
    layers.any_order(s, kind)


@case(
    "layer/{kind}/batch/padded",
    kind=KINDS,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    catches=("D3", "D4", "D11", "H1"),
)
def padding_rows_do_nothing(s: Subject, kind: str) -> None:
    """Steps padded to a bucket, and idle ones, are the steps without padding."""
    layers.padded(s, kind)


@case(
    "layer/{kind}/batch/finishing",
    kind=KINDS,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    catches=("E12", "D11", "J8"),
)
def requests_finish_at_different_steps(s: Subject, kind: str) -> None:
    """Seven requests finish one after another while others are admitted."""
    layers.finishing(s, kind, 7)


@case(
    "layer/{kind}/batch/finishing_20",
    kind=KINDS,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    level="extended",
    catches=("E12", "J8"),
    limit=180,
)
def twenty_requests_finish_at_different_steps(s: Subject, kind: str) -> None:
    """Twenty of them."""
    layers.finishing(s, kind, 20)
