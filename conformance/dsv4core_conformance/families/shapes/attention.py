"""Tokens, heads, lists, pages and layouts of the two attention ops."""

from __future__ import annotations

from dsv4core_conformance.case import case
from dsv4core_conformance.compare import require
from dsv4core_conformance.families._calls import ATTENTION, MAIN_LAYOUTS, between, need_layouts
from dsv4core_conformance.inputs import make
from dsv4core_conformance.inputs.draws import LARGE
from dsv4core_conformance.subject import Subject

DECODE = ATTENTION[0]
TOKENS = (1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)
WIDTHS = (
    1, 2, 3, 8, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 128, 129, 133, 191, 192, 193, 255, 256, 257, 300,
    512, 640, 1152,
)  # fmt: skip
ROWS = (1, 2, 3, 8, 16, 32, 64, 128, 256)
GRID = ("C6", "C7", "D13", "D14", "J3", "M5")
PAIRS = ((8, 128), (16, 512), (16, 640), (32, 192), (64, 256), (64, 640), (64, 1152), (128, 128), (128, 1152))


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
