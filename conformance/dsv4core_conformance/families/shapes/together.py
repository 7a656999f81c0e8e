"""Many tokens and long lists in one call: kernels that hold for either take another path for both."""

from __future__ import annotations

from typing import Any

from dsv4core_conformance.case import case
from dsv4core_conformance.families._calls import ATTENTION, INDEXER, TURNED
from dsv4core_conformance.families._lists import exact_list
from dsv4core_conformance.inputs import make
from dsv4core_conformance.subject import Subject

CONTEXTS: dict[str, Any] = {
    "requests": 2, "heads": 2, "kind": "dyadic", "lens": [900 + 7 * t for t in range(130)],
}  # fmt: skip
"""130 tokens that each see 900 to 1,803 entries, with scores that are exact."""


@case("op/{op}/shapes/tokens_by_context", op=INDEXER, catches=("L1", "L2", "G9"))
def many_long_contexts(s: Subject, op: str) -> None:
    """More tokens than a tile holds, each with a context of its own behind a thousand entries."""
    if op == "sparse_indexer":
        exact_list(s, make(op, **CONTEXTS, k=64))
        return
    s.check(op, make(op, **CONTEXTS))


@case("op/indexer_topk/shapes/tokens_by_context", ops=("indexer_topk",), catches=("L1", "L2", "G9"))
def many_long_rows(s: Subject) -> None:
    """More rows than a tile holds, every one behind a thousand scores, up to the last of them."""
    for kind in ("normal", "ties"):
        s.check("indexer_topk", make("indexer_topk", tokens=130, width=1500, lens="full", k=512, kind=kind))


@case("op/{op}/shapes/tokens_by_width", op=(*ATTENTION, TURNED), catches=("C6", "D14", "H7"))
def many_long_lists(s: Subject, op: str) -> None:
    """More tokens than a tile holds, each with lists of several tiles, full to the last lane."""
    options: dict[str, Any] = {"tokens": 70, "heads": 1, "lens": "full"}
    if op == "sparse_prefill":
        s.check(op, make(op, **options, window=600, keys=700))
        return
    options |= {"window": 300, "pages": 6}
    if op == TURNED:
        options |= {"groups": 1}
    s.check(op, make(op, **options, extra=None))
    s.check(op, make(op, **options, extra=300, extra_rows=64, extra_pages=6, extra_lens="full"))
