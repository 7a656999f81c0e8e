"""States, slots of entries, rows of results, and pages as they are allocated."""

from __future__ import annotations

from typing import Any

from dsv4core import AttentionConfig, cache_specs
from dsv4core_conformance.case import case
from dsv4core_conformance.compare import require
from dsv4core_conformance.inputs import make
from dsv4core_conformance.inputs.pages import Slots
from dsv4core_conformance.reference import rows as reference
from dsv4core_conformance.subject import Subject

PATTERNS: tuple[Slots, ...] = ("holes", "negative", "short", "empty", "none")


WIDTHS = (
    {"name": "c4_main", "width": 1024, "ratio": 4, "rows": 4},
    {"name": "c4_indexer", "width": 256, "ratio": 4, "rows": 4},
    {"name": "c128_main", "width": 512, "ratio": 128, "rows": 8},
    {"name": "rows_5", "width": 256, "ratio": 4, "rows": 5},
    {"name": "rows_100", "width": 256, "ratio": 4, "rows": 100},
)


@case(
    "layout/{layout}/save/{kind}_{slots}",
    level="layout", layout=("state_f32",), kind=WIDTHS, slots=("permuted", *PATTERNS),
    ops=["save_partial_states"], catches=("E1", "A8"),
)  # fmt: skip
def states(s: Subject, layout: str, slots: Slots, width: int, ratio: int, rows: int) -> None:
    """A state row is [kv | score + ape[position mod ratio]], and nothing else of the storage changes."""
    a = make(
        "save_partial_states",
        width=width, ratio=ratio, rows=rows, slots=slots, tokens=11, place={"lead": 9, "gap": 16},
    )  # fmt: skip
    s.check("save_partial_states", a)


@case(
    "layout/{layout}/save/values_{values}",
    level="layout", layout=("state_f32",), values=("spread", "corners"), ops=["save_partial_states"],
)  # fmt: skip
def state_values(s: Subject, layout: str, values: str) -> None:
    """States are one float32 addition, whatever the magnitudes."""
    s.check("save_partial_states", make("save_partial_states", values=values, tokens=12, width=256))


@case(
    "op/{op}/bytes/{what}",
    op=("compressed_slot_mapping",),
    what=(
        {"name": "ratio_4", "options": {}},
        {"name": "ratio_128", "options": {"ratio": 128, "rows": 2, "lengths": (700, 127, 128)}},
        {"name": "rows_5", "options": {"rows": 5}},
        {"name": "rows_100", "options": {"rows": 100, "lengths": (2100, 9, 300)}},
        {"name": "short", "options": {"short": 9}},
        {"name": "holes", "options": {"holes": True}},
        {"name": "unmapped_pages", "options": {"unmapped": True}},
        {"name": "from_the_middle", "options": {"starts": (3, 8, 299)}},
        {"name": "no_tokens", "options": {"lengths": (0,)}},
    ),
    level="layout", catches=("E1",),
)  # fmt: skip
def slots_of_entries(s: Subject, op: str, options: dict[str, Any]) -> None:
    """Only a token that completes a window and has a slot of its own gets the slot of its entry."""
    s.check(op, make(op, **options))


@case(
    "op/{op}/bytes/state_rows_{rows}",
    op=("compress_norm_rope_store",), rows=(5, 100), level="layout", catches=("E1", "A8"),
)  # fmt: skip
def state_rows(s: Subject, op: str, rows: int) -> None:
    """Windows are found in state pages of any number of rows, no power of two either."""
    for options in ({"lengths": (221, 9)}, {"lengths": (221, 9), "head_dim": 128}):
        s.check(op, make(op, state_rows=rows, **options))
    s.check(op, make(op, state_rows=rows, ratio=128, lengths=(256, 130), starts=(100, 120)))


@case(
    "op/fused_q_kv_rmsnorm/bytes/weights_{weights}_{kv_weights}",
    ops=("fused_q_kv_rmsnorm",), weights=("bf16", "f32"), kv_weights=("bf16", "f32"), level="layout",
)  # fmt: skip
def types_of_weights(s: Subject, weights: str, kv_weights: str) -> None:
    """Each of the two weights is read as its own type."""
    s.check("fused_q_kv_rmsnorm", make("fused_q_kv_rmsnorm", weights=weights, kv_weights=kv_weights))


@case(
    "op/{op}/bytes/tokens_{tokens}",
    op=("fused_q_kv_rmsnorm", "inverse_rope", "fused_inv_rope_fp8_quant"), tokens=(0, 1, 33), level="layout",
    catches=("E11",),
)  # fmt: skip
def row_counts(s: Subject, op: str, tokens: int) -> None:
    """Results for no token, for one, and for more than a block of them."""
    s.check(op, make(op, tokens=tokens))


@case("suite/bytes/allocation/{kind}", level="layout", kind=("swa", "csa", "hca"), catches=("A9", "A13"))
def allocation(s: Subject, kind: str) -> None:
    """Every cache of a layer is shaped by its own layout: size and distance of pages, zeroed."""
    layer = {"swa": 0, "csa": 1, "hca": 2}[kind]
    rows_of = {
        "swa": 64,
        "c4": 64,
        "c128": 2,
        "indexer": 64,
        "state_c4": 4,
        "state_indexer": 4,
        "state_c128": 8,
    }
    widths = {"state_c4": 1024, "state_indexer": 256, "state_c128": 512}
    for profile in ("vllm", "official", "sglang"):
        config = AttentionConfig.preset("tiny", profile=profile)
        cache = s.cache(config, layer, 512)
        found = cache.layer(layer)
        tensors = {"swa": found.swa, "indexer": found.indexer, "state_indexer": found.indexer_state}
        tensors["c4" if kind == "csa" else "c128"] = found.compressed
        tensors["state_c4" if kind == "csa" else "state_c128"] = found.state
        for spec in cache_specs(config, layer):
            size = reference.page_bytes(spec.layout, rows_of[spec.group], widths.get(spec.group, 0))
            tensor = tensors[spec.group]
            require(tensor is not None, f"{profile}: layer {layer} has no {spec.group}")
            have = tensor.stride(0) * tensor.element_size()
            require(spec.rows == rows_of[spec.group], f"{spec.key}: {spec.rows} rows per page")
            require(
                have == size, f"{profile} {spec.key}: pages are {have} bytes apart, {spec.layout} has {size}"
            )
            require(not tensor.any(), f"{profile} {spec.key}: a fresh cache must be zero")
