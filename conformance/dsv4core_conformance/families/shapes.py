"""Cases of the family SHAPES: every size runs and is right, or is refused before anything is written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsv4core_conformance.case import case
from dsv4core_conformance.compare import require
from dsv4core_conformance.contracts import CONTRACTS
from dsv4core_conformance.families._calls import (
    ATTENTION,
    INDEX_LAYOUTS,
    INDEXER,
    MAIN_LAYOUTS,
    between,
    need_layouts,
    refused,
)
from dsv4core_conformance.inputs import make
from dsv4core_conformance.inputs.draws import LARGE
from dsv4core_conformance.subject import Subject

DECODE, PREFILL = ATTENTION
TOKENS = (1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)
WIDTHS = (
    1, 2, 3, 8, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 128, 129, 133, 191, 192, 193, 255, 256, 257, 300,
    512, 640, 1152,
)  # fmt: skip
ROWS = (1, 2, 3, 8, 16, 32, 64, 128, 256)
GRID = ("C6", "C7", "D13", "D14", "J3", "M5")
PAIRS = ((8, 128), (16, 512), (16, 640), (32, 192), (64, 256), (64, 640), (64, 1152), (128, 128), (128, 1152))
CEILING = (65_535, 65_536, 65_537)


@case("op/{op}/shapes/tokens/{tokens}", op=ATTENTION, tokens=TOKENS, catches=(*GRID, "D1"))
def token_counts(s: Subject, op: str, tokens: int) -> None:
    """Any number of query tokens; 64 and 65 take different paths in some kernels."""
    s.check(op, make(op, tokens=tokens, heads=2, window=17))


@case("op/{op}/shapes/width/{width}", op=ATTENTION, width=WIDTHS, catches=GRID)
def list_widths(s: Subject, op: str, width: int) -> None:
    """Any width of a list, full and partly filled; the columns beside it are another's."""
    for lens in ("full", "random"):
        arguments = make(op, tokens=2, heads=3, window=width, lens=lens)
        for name in ("swa_slots", "indices"):
            if name in arguments:
                arguments[name] = between(arguments[name], LARGE)
        s.check(op, arguments)


@case("op/{op}/shapes/k_{k}", op=("indexer_topk", "sparse_indexer"), k=(512, 1024, 2048), catches=("L9",))
def entries_chosen(s: Subject, op: str, k: int) -> None:
    """The k of every released model, with more candidates than that and with fewer."""
    size = {"width": 2500, "tokens": 4} if op == "indexer_topk" else {"context": 2500}
    s.check(op, make(op, k=k, lens=[2500, k + 1, k, k - 1], **size))


@case("op/sparse_decode/shapes/extra/{width}", ops=(DECODE,), width=WIDTHS, catches=GRID)
def extra_widths(s: Subject, width: int) -> None:
    """Any width of the second list beside a window of 128, and alone."""
    for window, lens in ((128, "full"), (5, 0)):
        arguments = make(DECODE, tokens=2, heads=3, window=window, lens=lens, extra=width, extra_lens="full")
        arguments["extra_slots"] = between(arguments["extra_slots"], LARGE)
        s.check(DECODE, arguments)


@case("op/{op}/shapes/every_width", op=ATTENTION, level="extended", catches=GRID)
def every_width(s: Subject, op: str) -> None:
    """Every width from 1 to 300."""
    for width in range(1, 301):
        s.check(op, make(op, tokens=1, heads=2, window=width, lens="full"))


@case(
    "op/{op}/shapes/heads_by_width/{heads}x{width}",
    op=ATTENTION,
    heads=(1, 8, 16, 64),
    width=(17, 128, 192, 640),
    level="extended",
    catches=GRID,
)
def grid(s: Subject, op: str, heads: int, width: int) -> None:
    """The grid of heads by widths by tokens, with one cache and with two."""
    for tokens in (1, 5, 65):
        s.check(op, make(op, tokens=tokens, heads=heads, window=width))
        if op == DECODE:
            s.check(op, make(op, tokens=tokens, heads=heads, window=width, extra=None))


@case(
    "op/{op}/shapes/pairs/{pair}",
    op=ATTENTION,
    pair=[{"name": f"{h}x{w}", "heads": h, "width": w} for h, w in PAIRS],
    catches=(*GRID, "C6"),
)
def reported_pairs(s: Subject, op: str, heads: int, width: int) -> None:
    """Pairs of heads and width that are missing in dispatch tables of the field."""
    s.check(op, make(op, tokens=1, heads=heads, window=width))


@case(
    "op/sparse_decode/shapes/rows/{layout}/{rows}",
    ops=(DECODE,),
    layout=MAIN_LAYOUTS,
    rows=ROWS,
    catches=("A2", "A4", "K4"),
)
def rows_per_page(s: Subject, layout: str, rows: int) -> None:
    """Any number of rows per page, another one in the second cache, and one cache alone."""
    pages = max(130 // rows, 2)
    options = {"layout": layout, "tokens": 2, "heads": 2, "rows": rows, "pages": pages, "window": 50}
    s.check(DECODE, make(DECODE, **options, extra=None))
    s.check(DECODE, make(DECODE, **options, extra_rows=max(rows // 32, 1), extra_pages=40))


@case(
    "op/sparse_decode/shapes/layouts/{layout}+{extra}",
    ops=(DECODE,),
    layout=MAIN_LAYOUTS[:4],
    extra=MAIN_LAYOUTS[:4],
    catches=("B1", "A5"),
)
def mixed_layouts(s: Subject, layout: str, extra: str) -> None:
    """Two caches of two layouts, each read by its own."""
    need_layouts(s, extra)
    s.check(DECODE, make(DECODE, layout=layout, extra_layout=extra))


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


@case(
    "op/linear/shapes/{format}/{inputs}x{outputs}",
    ops=("linear",),
    format=("bf16", "fp8_block", "nvfp4", "mxfp4"),
    inputs=(32, 96, 128, 416),
    outputs=(1, 24, 128, 130),
    catches=("C9",),
)
def linear_sizes(s: Subject, format: str, inputs: int, outputs: int) -> None:
    """Sizes that are no multiples of a block, in every format and type of scale."""
    for tokens, scale in ((1, "u8"), (9, "e8m0"), (33, "f32" if format == "fp8_block" else "u8")):
        s.check(
            "linear",
            make("linear", format=format, inputs=inputs, outputs=outputs, tokens=tokens, scale=scale),
        )
    s.check("linear", make("linear", format=format, inputs=inputs, outputs=outputs, out="f32"))


@case("op/{op}/shapes/duplicates", op=ATTENTION)
def duplicates(s: Subject, op: str) -> None:
    """A row that is listed twice counts twice, in one list and over two."""
    s.check(op, make(op, duplicates=True, lens="full", sink="zero", spread=0.3))
    if op == DECODE:
        both = make(
            op, duplicates=True, lens="full", extra=40, extra_rows=64, extra_pages=3, extra_lens="full"
        )
        both["extra_slots"], both["extra_cache"] = both["swa_slots"].clone(), both["swa_cache"].clone()
        s.check(op, both)


@case("op/{op}/shapes/unrounded", op=ATTENTION, layouts=("f32_row",))
def unrounded(s: Subject, op: str) -> None:
    """In profile `math` nothing is rounded to bf16, the weights of the keys neither."""
    plain = {"layout": "f32_row"} if op == DECODE else {"act": "f32"}
    error = s.check(op, make(op, tokens=5, window=100, **plain)).error
    require(error < 2e-5, f"{op}: error {error:.1e} in float32; rounding to bf16 costs about 2e-3")


@case("op/linear/shapes/nvfp4/global_scale", ops=("linear",))
def global_scales(s: Subject) -> None:
    """One scale over all of an nvfp4 weight, whatever number it is."""
    for scale in (1.0, 0.0123, 3e-5, 700.0):
        for out in ("bf16", "f32"):
            s.check(
                "linear", make("linear", format="nvfp4", global_scale=scale, out=out, tokens=20, outputs=300)
            )


@case(
    "op/grouped_output_projection/shapes/{o}/{weight}",
    ops=("grouped_output_projection",),
    o=("bf16", "f32", "e4m3_f32", "e4m3_ue8m0x4"),
    weight=("bf16", "u8", "e8m0", "f32_scales"),
    catches=("C8",),
)
def projection_types(s: Subject, o: str, weight: str) -> None:
    """Every combination of inputs and weights, one token and many."""
    op = "grouped_output_projection"
    need_layouts(s, *(("f32_row",) if o == "f32" else ()))
    for tokens, heads, groups, lora in ((1, 4, 2, 16), (33, 8, 4, 40), (3, 4, 1, 130)):
        s.check(op, make(op, o=o, tokens=tokens, heads=heads, groups=groups, lora=lora, weight=weight))


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
    s.check(op, make(op, tokens=tokens, heads=1, **({"window": 2} if op == PREFILL else {})))


@case("op/sparse_decode/shapes/tokens/65537", ops=(DECODE,), level="extended", limit=180.0, catches=("E14",))
def many_decodes(s: Subject) -> None:
    """More than 65,536 tokens of decode at once."""
    s.check(DECODE, make(DECODE, tokens=65_537, heads=1, window=2, extra=None))


@case("op/{op}/shapes/refused", op=tuple(CONTRACTS), catches=("D15", "C2", "M9"))
def refused_shapes(s: Subject, op: str) -> None:
    """Tensors of another rank or type, and none where one is needed, are refused before a byte is written."""
    for name, value in make(op).items():
        if not isinstance(value, Tensor):
            continue
        for word, other in (
            ("with one more dimension", value.unsqueeze(0)),
            ("with one more dimension behind", value.unsqueeze(-1)),
            ("with one dimension less", value[0]),
            ("of float64", torch.zeros(value.shape, dtype=torch.float64)),
            ("of int16", torch.zeros(value.shape, dtype=torch.int16)),
            ("that is a list", [0]),
        ):
            refused(s, op, {**make(op), name: other}, f"{name} {word}", name)


TIED = {
    "fused_indexer_q_rope_quant": ("positions", "weights", "q.2", "cos_sin.1", "weights.1"),
    "indexer_logits": ("weights", "weights.1", "context_lens", "token_to_req", "q.2"),
    "indexer_topk": ("context_lens",),
    "sparse_indexer": ("weights", "weights.1", "context_lens", "token_to_req", "q.2"),
    "compute_global_topk_indices_and_lens": ("token_to_req", "is_valid"),
    "combine_topk_swa_indices": ("query_start_loc", "gather_lens"),
    "sparse_decode": (
        "swa_slots",
        "swa_lens",
        "extra_slots",
        "extra_lens",
        "attn_sink",
        "out",
        "out.1",
        "out.2",
        "q.2",
    ),
    "sparse_prefill": ("indices", "lens", "attn_sink", "out", "out.1", "out.2", "q.2", "kv.1"),
    "grouped_output_projection": ("wo_a", "wo_a.1", "o.2"),
    "linear": ("weight.1", "x.1"),
}
"""Dimensions that another argument fixes."""


@case("op/{op}/shapes/tied", op=tuple(TIED), catches=("H1", "D15", "C3"))
def tied_shapes(s: Subject, op: str) -> None:
    """One element more, or fewer, than the other arguments say is refused before a byte is written."""
    for word in TIED[op]:
        name, _, dim = word.partition(".")
        for step in (1, -1):
            value = make(op)[name]
            size = value.shape[int(dim or 0)] + step
            shape = [size if d == int(dim or 0) else n for d, n in enumerate(value.shape)]
            plain = torch.zeros(shape, dtype=torch.uint8 if value.element_size() == 1 else value.dtype)
            refused(s, op, {**make(op), name: plain.view(value.dtype)}, f"{name} of shape {shape}")


@case("op/{op}/shapes/parameters", op=tuple(CONTRACTS), catches=("M9", "A17"))
def refused_parameters(s: Subject, op: str) -> None:
    """Numbers and names of the wrong kind are refused with the op's error, not by an assertion somewhere."""
    optional = {"extra_rows", "extra_layout"}
    for name, value in make(op).items():
        if isinstance(value, Tensor) or value is None or name in optional:
            continue
        wrong: tuple[Any, ...] = (None, b"x", [1])
        if isinstance(value, str):
            wrong += ("", "nothing that is known", 3)
        elif isinstance(value, bool | int):
            wrong += ("1", 1.5, True)
        elif isinstance(value, float):
            wrong += (float("nan"), float("inf"), "1")
        for other in wrong:
            refused(s, op, {**make(op), name: other}, f"{name}={other!r}")
