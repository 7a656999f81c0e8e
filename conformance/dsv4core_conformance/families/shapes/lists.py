"""Sizes of the index ops and of those that turn lists into slots."""

from __future__ import annotations

from dsv4core_conformance.case import case
from dsv4core_conformance.families._calls import INDEX_LAYOUTS, INDEXER
from dsv4core_conformance.inputs import make
from dsv4core_conformance.subject import Subject


@case("op/{op}/shapes/k_{k}", op=("indexer_topk", "sparse_indexer"), k=(512, 1024, 2048), catches=("L9",))
def entries_chosen(s: Subject, op: str, k: int) -> None:
    """The k of every released model, with more candidates than that and with fewer."""
    size = {"width": 2500, "tokens": 4} if op == "indexer_topk" else {"context": 2500}
    s.check(op, make(op, k=k, lens=[2500, k + 1, k, k - 1], **size))


@case(
    "op/{op}/shapes/rows/{layout}/{rows}",
    op=INDEXER,
    layout=INDEX_LAYOUTS,
    rows=(1, 2, 16, 64, 128),
    catches=("A1", "A2", "A4"),
)
def index_rows_per_page(s: Subject, op: str, layout: str, rows: int) -> None:
    """Any number of rows per index page."""
    s.check(op, make(op, layout=layout, rows=rows, lens=[70, 33, 1]))


@case("op/{op}/shapes/tokens/{tokens}", op=INDEXER, tokens=(1, 2, 5, 17, 64, 65), catches=("L6", "E13"))
def index_tokens(s: Subject, op: str, tokens: int) -> None:
    """Any number of tokens, several of one request beside single ones."""
    s.check(op, make(op, tokens=tokens, requests=min(3, tokens), context=80, heads=2))


@case(
    "op/indexer_logits/shapes/max_len/{max_len}",
    ops=("indexer_logits",),
    max_len=(0, 1, 63, 64, 65, 100, 128, 300),
    catches=("N7", "N6"),
)
def logits_width(s: Subject, max_len: int) -> None:
    """Any width of the result, also below a context."""
    s.check("indexer_logits", make("indexer_logits", lens=[100, 1, 64, 0], max_len=max_len))


@case(
    "op/combine_topk_swa_indices/shapes/{window}_{top_k}",
    ops=("combine_topk_swa_indices",),
    window=(1, 5, 127, 128),
    top_k=(0, 1, 9, 128, 512, 1024),
    catches=("D13", "D14"),
)
def combined_widths(s: Subject, window: int, top_k: int) -> None:
    """Window and k that are no multiples of anything; the list is as wide as the next multiple of 128."""
    op = "combine_topk_swa_indices"
    for ratio in (4, 128):
        s.check(op, make(op, window=window, top_k=top_k, ratio=ratio))
    s.check(op, make(op, window=window, top_k=top_k, ratio=1, first=0, spare=0, holes=0.2))


@case(
    "op/compute_global_topk_indices_and_lens/shapes/{rows}",
    ops=("compute_global_topk_indices_and_lens",),
    rows=(1, 2, 64, 100),
    catches=("K4",),
)
def slot_rows(s: Subject, rows: int) -> None:
    """Any number of rows per page, tokens, k and requests."""
    op = "compute_global_topk_indices_and_lens"
    for tokens, k, requests in ((1, 1, 1), (7, 33, 2), (65, 512, 9)):
        s.check(op, make(op, rows=rows, tokens=tokens, k=k, requests=requests))
