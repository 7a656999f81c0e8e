"""Tokens, lists, layouts, groups and formats of the op that attends and turns back."""

from __future__ import annotations

from dsv4core_conformance.case import case
from dsv4core_conformance.compare import require
from dsv4core_conformance.families._calls import MAIN_LAYOUTS, ROUNDED, TURNED, need_layouts, refused
from dsv4core_conformance.inputs import make
from dsv4core_conformance.subject import Subject

TOKENS = (1, 2, 15, 16, 17, 63, 64, 65, 129)
WIDTHS = (1, 8, 63, 64, 65, 128, 192, 300)
PAIRS = ((8, 128), (16, 640), (64, 640), (128, 128))
GRID = ("C6", "C7", "D13", "D14", "M5")


@case("op/{op}/shapes/tokens/{tokens}", op=(TURNED,), tokens=TOKENS, catches=GRID)
def token_counts(s: Subject, op: str, tokens: int) -> None:
    """Any number of query tokens."""
    for format in ROUNDED:
        s.check(op, make(op, tokens=tokens, heads=2, window=17, scale_format=format))


@case("op/{op}/shapes/width/{width}", op=(TURNED,), width=WIDTHS, catches=GRID)
def list_widths(s: Subject, op: str, width: int) -> None:
    """Any width of either list, full and partly filled."""
    for lens, format in zip(("full", "random", "mixed"), ROUNDED, strict=True):
        s.check(op, make(op, tokens=2, window=width, lens=lens, scale_format=format))
        s.check(op, make(op, tokens=2, window=128, extra=width, extra_lens=lens, scale_format=format))


@case(
    "op/{op}/shapes/pairs/{pair}",
    op=(TURNED,), pair=[{"name": f"{h}x{w}", "heads": h, "width": w} for h, w in PAIRS], catches=GRID,
)  # fmt: skip
def pairs(s: Subject, op: str, heads: int, width: int) -> None:
    """Heads and widths as models and their ranks have them, in groups of eight."""
    for format in ROUNDED:
        options = {"groups": heads // 8, "window": 128, "extra": max(width - 128, 1)}
        s.check(op, make(op, tokens=2, heads=heads, **options, scale_format=format))


@case(
    "op/{op}/shapes/layouts/{layout}+{extra}",
    op=(TURNED,), layout=MAIN_LAYOUTS[:4], extra=MAIN_LAYOUTS[:4], catches=("B1", "A5"),
)  # fmt: skip
def mixed_layouts(s: Subject, op: str, layout: str, extra: str) -> None:
    """Two caches of two layouts, each read by its own."""
    need_layouts(s, extra)
    s.check(op, make(op, layout=layout, extra_layout=extra, scale_format="ue8m0x4"))


@case("op/{op}/shapes/duplicates_{format}", op=(TURNED,), format=ROUNDED)
def duplicates(s: Subject, op: str, format: str) -> None:
    """A row that is listed twice counts twice, and negative slots are no keys."""
    options = {"duplicates": True, "lens": "full", "sink": "zero", "spread": 0.3, "scale_format": format}
    s.check(op, make(op, **options))
    s.check(op, make(op, **options, holes=0.4))


@case("op/{op}/shapes/unrounded", op=(TURNED,), layouts=("f32_row",))
def unrounded(s: Subject, op: str) -> None:
    """In profile `math` the output is f32 and nothing on the way is rounded to bf16."""
    error = s.check(op, make(op, tokens=5, window=100, layout="f32_row")).error
    require(error < 2e-5, f"{op}: error {error:.1e} in float32; rounding to bf16 costs about 2e-3")


@case("op/{op}/shapes/groups_refused", op=(TURNED,), catches=("C8",))
def groups_refused(s: Subject, op: str) -> None:
    """Groups that do not divide the heads are refused, in the formats without groups too."""
    for format in ROUNDED:
        for groups in (0, -1, 3, 8):
            arguments = make(op, heads=4, groups=groups, scale_format=format)
            refused(s, op, arguments, f"{groups} groups of 4 heads", "groups")


@case("op/{op}/shapes/half_a_list", op=(TURNED,), catches=("D15",))
def half_a_list(s: Subject, op: str) -> None:
    """A second cache without its slots or without its lengths is refused."""
    for name in ("extra_slots", "extra_lens"):
        refused(s, op, {**make(op), name: None}, f"no {name}", name)
