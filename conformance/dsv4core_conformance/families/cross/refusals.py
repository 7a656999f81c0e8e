"""No id is taken for another, no page for a larger one, no export for one's own."""

from __future__ import annotations

import torch

from dsv4core import AttentionConfig
from dsv4core.errors import DSV4CoreError
from dsv4core_conformance.case import case
from dsv4core_conformance.compare import Mismatch
from dsv4core_conformance.inputs import make
from dsv4core_conformance.reference import rows as reference
from dsv4core_conformance.reference.rows import INDEX, MAIN
from dsv4core_conformance.refusal import refused
from dsv4core_conformance.subject import Subject

GATHER, COMPRESS = "dequantize_and_gather_k_cache", "compress_norm_rope_store"


_WRONG_LAYOUTS = tuple(
    {"name": f"{op}_{argument}_as_{wrong or 'nothing'}", "op": op, "argument": argument, "wrong": wrong}
    for op, argument, wrongs in (
        (GATHER, "layout", ("index_fp8", "fp8_ds_mla_v9", "")),
        ("fused_qnorm_rope_kv_insert", "layout", ("index_fp8", "fp8_ds_mla_v9")),
        ("quantize_and_insert_k_cache", "layout", ("index_mxfp4", "state_f32")),
        ("sparse_decode", "layout", ("index_fp8", "unknown")),
        ("sparse_decode", "extra_layout", ("index_fp8", "unknown")),
        ("indexer_logits", "layout", ("fp8_ds_mla", "index_mxfp4", "index_fp8_hadamard_f32", "index_f32")),
        ("sparse_indexer", "layout", ("bf16_row", "index_mxfp4_hadamard")),
        (COMPRESS, "layout", ("index_fp8", "index_mxfp4_hadamard", "state_f32")),
    )
    for wrong in wrongs
)


@case(
    "suite/cross/refuses/{which}",
    level="layout", which=_WRONG_LAYOUTS, catches=("A4", "A5", "A14", "A15"),
)  # fmt: skip
def wrong_layout(s: Subject, op: str, argument: str, wrong: str) -> None:
    """A page's bytes are never used under an id that cannot be theirs: an error, and nothing changes."""
    refused(s, op, {**make(op), argument: wrong}, f"{argument}={wrong!r}")


@case(
    "layout/{layout}/refuses/other_rotation",
    level="layout", layout=INDEX, ops=[COMPRESS, "indexer_logits"], catches=("A14", "A15"),
)  # fmt: skip
def wrong_rotation(s: Subject, layout: str) -> None:
    """Rotating only one of queries and keys cannot be said: `rotate` must be the layout's own."""
    other = "none" if layout in reference.ROTATED else "hadamard"
    a = make(COMPRESS, layout=layout, head_dim=128)
    refused(s, COMPRESS, {**a, "rotate": other}, f"rotate={other!r} for {layout}")
    for op in ("indexer_logits", "sparse_indexer"):
        refused(s, op, {**make(op, layout=layout), "rotate": other}, f"rotate={other!r} for {layout}")


@case(
    "layout/{layout}/refuses/smaller_page",
    level="layout", layout=MAIN, ops=[GATHER, "quantize_and_insert_k_cache"], catches=("A9", "A13"),
)  # fmt: skip
def smaller_page(s: Subject, layout: str) -> None:
    """Pages that cannot hold as many rows as the call says are refused."""
    for op in (GATHER, "quantize_and_insert_k_cache"):
        refused(s, op, {**make(op, layout=layout), "rows": 512}, "a page too small for its rows")


@case("suite/cross/interleaved_shape_is_refused", level="layout", catches=("A1", "A2", "A9"))
def interleaved_shape(s: Subject) -> None:
    """Pages shaped [N, rows, 584] would say that a record is contiguous, which it is not."""
    for op in (GATHER, "quantize_and_insert_k_cache"):
        a = make(op)
        pages = a["k_cache"]
        shaped = torch.zeros((len(pages), a["rows"], 584), dtype=torch.uint8)
        refused(s, op, {**a, "k_cache": shaped}, "a cache shaped [N, rows, 584]")


@case("suite/cross/import_checks_the_layout", level="layout", catches=("A5", "A15", "A16"))
def foreign_export(s: Subject) -> None:
    """A request exported with one index layout is not admitted to a cache of another with rows as long."""
    cache = s.cache(AttentionConfig.preset("tiny", profile="vllm"), 1, 512)
    cache.plan({"a": 40})
    export = cache.export("a")
    for profile in ("sglang", "official"):
        other = s.cache(AttentionConfig.preset("tiny", profile=profile), 1, 512)
        try:
            other.import_(export, "b")
        except DSV4CoreError:
            continue
        raise Mismatch(f"pages of profile vllm were admitted to a cache of profile {profile}")
