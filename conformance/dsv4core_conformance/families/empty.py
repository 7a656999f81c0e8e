"""Cases of the family EMPTY: no key, no entry, no token, no request: exact zeros, and at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dsv4core_conformance.case import case
from dsv4core_conformance.compare import require
from dsv4core_conformance.families._calls import (
    ATTENTION,
    INDEX_LAYOUTS,
    INDEXER,
    MAIN_LAYOUTS,
    ROUNDED,
    TOKENS,
    TURNED,
    with_tokens,
)
from dsv4core_conformance.hosts import to_numpy
from dsv4core_conformance.inputs import make
from dsv4core_conformance.subject import Subject

LIMIT = 10.0
SINKS = ("none", "zero", "distinct", "plus_inf")
ROWS = ("leading", "middle", "trailing", "all")
NO_TOKENS: dict[str, dict[str, Any]] = {
    "fused_q_kv_rmsnorm": {"tokens": 0},
    "fused_qnorm_rope_kv_insert": {"tokens": 0},
    "quantize_and_insert_k_cache": {"tokens": 0},
    "save_partial_states": {"tokens": 0},
    "inverse_rope": {"tokens": 0},
    "fused_inv_rope_fp8_quant": {"tokens": 0},
}


@case(
    "op/{op}/empty/rows_{where}/{sink}",
    op=ATTENTION,
    where=ROWS,
    sink=SINKS,
    limit=LIMIT,
    catches=("D3", "D5", "D12", "D4"),
)
def rows_without_keys(s: Subject, op: str, where: str, sink: str) -> None:
    """Tokens without a key among others: exactly 0 and lse +inf, with any sink, the others untouched."""
    empty = {"leading": (0, 1), "middle": (3, 4), "trailing": (6, 7), "all": range(8)}[where]
    lens = np.where(np.isin(np.arange(8), list(empty)), 0, 5)
    more = {"extra_lens": lens} if op == "sparse_decode" else {}
    arguments = make(op, tokens=8, heads=4, window=9, lens=lens.tolist(), sink=sink, **more)
    lse = s.check(op, arguments).results[0]
    _zeros(op, arguments, lse, list(empty))


@case(
    "op/{op}/empty/holes_{holes}/{sink}",
    op=ATTENTION,
    holes=("leading", "middle", "trailing", "block", "all"),
    sink=SINKS,
    limit=LIMIT,
    catches=("D5", "D10", "D12"),
)
def holes(s: Subject, op: str, holes: str, sink: str) -> None:
    """Negative slots in front (a whole block of 64), in the middle, behind, everywhere: they are no keys."""
    arguments = make(op, heads=4, window=130, lens="full", holes=holes, sink=sink)
    lse = s.check(op, arguments).results[0]
    if holes == "all":
        _zeros(op, arguments, lse, [0, 1, 2])


@case("op/{op}/empty/tiles_of_holes", op=(*ATTENTION, TURNED), catches=("D5", "D10", "D12"))
def tiles_of_holes(s: Subject, op: str) -> None:
    """Whole tiles of a list hold no key, the first one and one in the middle; keys behind them count."""
    options: dict[str, Any] = {"window": 400, "lens": "full"}
    if op == "sparse_prefill":
        lists: tuple[tuple[str, ...], ...] = (("indices",),)
        options |= {"keys": 500}
    else:
        lists = (("swa_slots",), ("extra_slots",), ("swa_slots", "extra_slots"))
        options |= {"pages": 7, "extra": 400, "extra_rows": 64, "extra_pages": 7, "extra_lens": "full"}
    for names in lists:
        arguments = make(op, **options)
        for name in names:
            arguments[name][:, :128] = -1
            arguments[name][:, 192:320] = -7
        s.check(op, arguments)


@case(
    "op/sparse_decode/empty/{which}/{layout}",
    ops=("sparse_decode",),
    which=("window", "extra", "both", "single"),
    layout=MAIN_LAYOUTS,
    limit=LIMIT,
    catches=("D5", "D12", "E11"),
)
def one_list_empty(s: Subject, which: str, layout: str) -> None:
    """One of the two lists, or both, are empty: by length, by holes, by having no column at all."""
    op, names = (
        "sparse_decode",
        {"window": ("lens",), "extra": ("extra_lens",), "both": ("lens", "extra_lens")},
    )
    both = dict.fromkeys(names.get(which, ("lens",)), 0)
    single: dict[str, Any] = {"extra": None} if which == "single" else {}
    s.check(op, make(op, layout=layout, **single, **both))
    arguments = make(op, layout=layout, **single, lens="full")
    for name in both:
        arguments["swa_slots" if name == "lens" else "extra_slots"].fill_(-3)
    s.check(op, arguments)
    widths = {"lens": {"window": 0}, "extra_lens": {"extra": 0}}
    no_columns: dict[str, Any] = {}
    for name in both:
        no_columns |= widths[name]
    s.check(op, make(op, layout=layout, **{**single, **no_columns}))


@case("op/{op}/empty/live_lane_behind_0", op=ATTENTION, limit=LIMIT, catches=("D3", "D12", "D1"))
def length_of_0(s: Subject, op: str) -> None:
    """A length of 0 before a lane that names a real row, in one list or in both: it is not read as 1."""
    for lens, more in (([0, 5, 0, 0], [3, 0, 0, 4]), ([0, 0, 0, 0], [0, 0, 0, 0])):
        options: dict[str, Any] = {"extra_lens": more} if op == "sparse_decode" else {}
        arguments = make(op, tokens=4, heads=2, window=9, lens=lens, sink="zero", **options)
        for name in ("swa_slots", "extra_slots", "indices"):
            if name in arguments:
                listed = arguments[name]
                listed[(listed < 0) | (listed > 1 << 20)] = 1
        s.check(op, arguments)


@case("op/sparse_decode/empty/no_pages", ops=("sparse_decode",), limit=LIMIT, catches=("D12", "E11"))
def no_pages(s: Subject) -> None:
    """A cache without a page, as before the first token: nothing to attend to."""
    op = "sparse_decode"
    arguments = make(op, lens=0, extra_lens=0)
    arguments["swa_cache"], arguments["extra_cache"] = (
        arguments["swa_cache"][:0],
        arguments["extra_cache"][:0],
    )
    _zeros(op, arguments, s.check(op, arguments).results[0], [0, 1, 2])


@case(
    "op/{op}/empty/contexts/{layout}",
    op=INDEXER,
    layout=INDEX_LAYOUTS,
    limit=LIMIT,
    catches=("D3", "D4", "E11"),
)
def empty_contexts(s: Subject, op: str, layout: str) -> None:
    """Tokens that see no entry: only hidden cells, a list of -1."""
    for lens in ([0, 0, 0], [0, 70, 0], [70, 0, 1]):
        s.check(op, make(op, layout=layout, lens=lens))
    arguments = make(op, layout=layout, lens=[0, 0])
    arguments["block_table"] = arguments["block_table"][:, :0]
    s.check(op, arguments)
    arguments["k_cache"] = arguments["k_cache"][:0]
    s.check(op, arguments)
    if op == "indexer_logits":
        s.check(op, make(op, layout=layout, lens=[3, 0], max_len=0))


@case("op/indexer_topk/empty/contexts", ops=("indexer_topk",), limit=LIMIT, catches=("D3", "D7", "D8"))
def nothing_to_choose(s: Subject) -> None:
    """Contexts of 0, rows without a cell: -1 throughout, whatever stands in the cells."""
    for kind in ("normal", "huge"):
        s.check("indexer_topk", make("indexer_topk", kind=kind, lens=0, k=64, behind=np.inf))
        s.check("indexer_topk", make("indexer_topk", kind=kind, lens=[0, 130, 0], k=64, behind=np.nan))
    s.check("indexer_topk", make("indexer_topk", width=0, lens=0, k=8))


@case(
    "op/compute_global_topk_indices_and_lens/empty/{what}",
    ops=("compute_global_topk_indices_and_lens",),
    what=("padding", "holes", "columns", "requests", "table"),
    limit=LIMIT,
    catches=("D3", "D7", "E11"),
)
def no_slots(s: Subject, what: str) -> None:
    """Only padding tokens, only holes, lists without a column, no request, tables without a page."""
    op = "compute_global_topk_indices_and_lens"
    options: dict[str, dict[str, Any]] = {
        "padding": {"valid": 0.0}, "holes": {"holes": "all"}, "columns": {"k": 0},
        "requests": {"tokens": 0, "requests": 0}, "table": {"holes": "all"},
    }  # fmt: skip
    arguments = make(op, **options[what])
    if what == "table":
        arguments["block_table"] = arguments["block_table"][:, :0]
    s.check(op, arguments)


@case(
    "op/combine_topk_swa_indices/empty/{what}",
    ops=("combine_topk_swa_indices",),
    what=("queries", "requests", "lists", "first_tokens"),
    limit=LIMIT,
    catches=("E11", "D3", "D10"),
)
def nothing_to_combine(s: Subject, what: str) -> None:
    """Requests without a query, no request, no entries, tokens before the first entry."""
    options: dict[str, dict[str, Any]] = {
        "queries": {"queries": (0, 3, 0, 0, 2, 0), "prefixes": (5, 0, 0, 300, 130, 1)},
        "requests": {"queries": (), "prefixes": ()},
        "lists": {"top_k": 0, "spare": 0, "ratio": 0},
        "first_tokens": {"queries": (1, 2, 3), "prefixes": (0, 0, 0), "ratio": 128},
    }
    s.check("combine_topk_swa_indices", make("combine_topk_swa_indices", **options[what]))


@case("op/{op}/empty/no_tokens", op=(*TOKENS, *NO_TOKENS), limit=LIMIT, catches=("E11", "D3", "D11"))
def no_tokens(s: Subject, op: str) -> None:
    """A call without a token, as of an idle rank: empty results of the right shape, nothing written."""
    if op in NO_TOKENS:
        s.check(op, make(op, **NO_TOKENS[op]))
        return
    s.check(op, with_tokens(op, make(op), torch.zeros(0, dtype=torch.int64)))
    s.check(op, make(op, tokens=0, **({"requests": 1, "lens": []} if op in INDEXER else {})))


@case(
    "op/{op}/empty/nothing",
    op=("compress_norm_rope_store", "compressed_slot_mapping", "dequantize_and_gather_k_cache"),
    limit=LIMIT,
    catches=("E11", "D11"),
)
def no_requests(s: Subject, op: str) -> None:
    """No request at all, and requests without a token."""
    for lengths in ((), (0,), (0, 0, 0)):
        s.check(op, make(op, lengths=lengths))


def _zeros(op: str, arguments: dict[str, Any], lse: torch.Tensor | None, empty: Sequence[int]) -> None:
    out, sums = to_numpy(arguments["out"]), to_numpy(lse)
    for t in empty:
        require(not out[t].any(), f"{op}: token {t} has no key: its output must be exactly 0")
        require(
            np.isposinf(sums[t]).all(), f"{op}: token {t} has no key: its lse must be +inf, is {sums[t][:4]}"
        )


@case(
    "op/{op}/empty/rows_{where}_{format}",
    op=(TURNED,), where=ROWS, format=ROUNDED, limit=LIMIT, catches=("D3", "D5", "D12"),
)  # fmt: skip
def turned_rows_without_keys(s: Subject, op: str, where: str, format: str) -> None:
    """Tokens without a key among others, by length and by holes: exactly 0 with any sink."""
    empty = {"leading": (0, 1), "middle": (3, 4), "trailing": (6, 7), "all": range(8)}[where]
    lens = np.where(np.isin(np.arange(8), list(empty)), 0, 5).tolist()
    for sink in SINKS:
        options = {"tokens": 8, "heads": 4, "window": 9, "sink": sink, "scale_format": format}
        s.check(op, make(op, **options, lens=lens, extra_lens=lens))
        holes = make(op, **options, lens="full", extra_lens="full")
        for name in ("swa_slots", "extra_slots"):
            holes[name][list(empty)] = -3
        s.check(op, holes)


@case("op/{op}/empty/{which}", op=(TURNED,), which=("window", "extra", "single", "pages"), limit=LIMIT,
      catches=("D5", "D12", "E11"))  # fmt: skip
def turned_list_empty(s: Subject, op: str, which: str) -> None:
    """One of two lists is empty, there is one alone, or there is no page yet."""
    options: dict[str, dict[str, Any]] = {
        "window": {"lens": 0}, "extra": {"extra_lens": 0}, "single": {"extra": None},
        "pages": {"lens": 0, "extra_lens": 0},
    }  # fmt: skip
    for format in ROUNDED:
        a = make(op, **options[which], scale_format=format)
        if which == "pages":
            a["swa_cache"], a["extra_cache"] = a["swa_cache"][:0], a["extra_cache"][:0]
        s.check(op, a)
