"""Every byte of a storage after a writer; pages lie in a canvas of 0xA5, so that any other byte shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dsv4core_conformance.case import case
from dsv4core_conformance.compare import require
from dsv4core_conformance.inputs import make
from dsv4core_conformance.inputs.pages import POISON, Slots, raw_pages
from dsv4core_conformance.inputs.writers import (
    INDEX_WRITERS,
    INSERT,
    MAIN_WRITERS,
    PACKED,
    PAGES,
    WRITE,
    written_bytes,
    written_slots,
)
from dsv4core_conformance.reference import rows as reference
from dsv4core_conformance.reference.rows import INDEX, MAIN
from dsv4core_conformance.subject import Subject

ROWS = (64, 2, 256, 5)
PATTERNS: tuple[Slots, ...] = ("holes", "negative", "short", "empty", "none")
CODES = {"fp8_ds_mla": 448, "fp8_ds_mla_fnuz": 448, "fp8_row": 512}
LAYOUT_BUGS = ("A1", "A2", "A3", "A4", "A5", "A6", "A10")


def _called(s: Subject, op: str, layout: str, options: dict[str, Any]) -> dict[str, Any]:
    """Arguments after a call whose result this case looks at byte by byte."""
    a = make(op, layout=layout, place=PACKED, **options)
    s.call(op, a)
    return a


@case(
    "layout/{layout}/{writer}/page_rows_{rows}",
    level="layout", layout=MAIN, writer=MAIN_WRITERS, rows=ROWS, catches=LAYOUT_BUGS,
)  # fmt: skip
def main_page_rows(s: Subject, op: str, options: dict[str, Any], layout: str, rows: int) -> None:
    """Rows land where the layout says for this many rows per page, and nothing else changes."""
    s.check(op, make(op, layout=layout, rows=rows, place=PACKED, **options))


@case(
    "layout/{layout}/{writer}/page_rows_{rows}",
    level="layout", layout=INDEX, writer=INDEX_WRITERS, rows=ROWS, catches=LAYOUT_BUGS,
)  # fmt: skip
def index_page_rows(s: Subject, op: str, options: dict[str, Any], layout: str, rows: int) -> None:
    """Index rows land where the layout says for this many rows per page, and nothing else changes."""
    s.check(op, make(op, layout=layout, rows=rows, place=PACKED, **options))


@case(
    "layout/{layout}/{writer}/values_{values}",
    level="layout", layout=MAIN, writer=MAIN_WRITERS, values=("spread", "corners"),
    catches=("B3", "B4", "B8"),
)  # fmt: skip
def main_values(s: Subject, op: str, options: dict[str, Any], layout: str, values: str) -> None:
    """Blocks of magnitudes from 2^-30 to 2^33, and corners of the formats, give the specified bytes."""
    wide = {"tokens": 24} if "lengths" not in options else {}
    s.check(op, make(op, layout=layout, values=values, **wide, **options))


@case(
    "layout/{layout}/{writer}/values_{values}",
    level="layout", layout=INDEX, writer=INDEX_WRITERS, values=("spread", "corners"), catches=("B3", "B8"),
)  # fmt: skip
def index_values(s: Subject, op: str, options: dict[str, Any], layout: str, values: str) -> None:
    """The same for index rows."""
    s.check(op, make(op, layout=layout, values=values, **options))


@case(
    "layout/{layout}/{writer}/slots_{slots}",
    level="layout", layout=MAIN, writer=(INSERT, WRITE), slots=PATTERNS, catches=("A6",),
)  # fmt: skip
def slot_patterns(s: Subject, op: str, options: dict[str, Any], layout: str, slots: Slots) -> None:
    """Any negative slot skips its row, and rows behind a shorter slot_mapping are padding."""
    s.check(op, make(op, layout=layout, slots=slots, place=PACKED, tokens=11, **options))


@case(
    "layout/{layout}/{writer}/skipped_windows",
    level="layout", layout=("fp8_ds_mla", "bf16_row"), writer=MAIN_WRITERS[2:], catches=("E1",),
)  # fmt: skip
def skipped_windows(s: Subject, op: str, options: dict[str, Any], layout: str) -> None:
    """An entry is written only where the token has a state slot and the entry a slot."""
    s.check(op, make(op, layout=layout, holes=True, short=3, place=PACKED, **options))


@case(
    "layout/{layout}/{writer}/scale_pad_byte_zero",
    level="layout", layout=("fp8_ds_mla", "fp8_ds_mla_fnuz"), writer=MAIN_WRITERS, catches=("A5", "A6"),
)  # fmt: skip
def scale_pad_byte_zero(s: Subject, op: str, options: dict[str, Any], layout: str) -> None:
    """The eighth scale byte of every written row is 0, not what was there before."""
    a = _called(s, op, layout, options)
    page, _, tail = written_bytes(op, a)
    found = a["k_cache"].numpy()[page, tail[:, 7]]
    require((found == 0).all(), f"{op}: scale byte 7 must be 0, found {found[:8]} in pages {page[:8]}")


@case(
    "layout/{layout}/{writer}/scale_bytes_between_1_and_254",
    level="layout", layout=("fp8_ds_mla", "fp8_ds_mla_fnuz"), writer=(INSERT, WRITE), catches=("B8",),
)  # fmt: skip
def scale_bytes_in_range(s: Subject, op: str, options: dict[str, Any], layout: str) -> None:
    """No scale byte is 0 or 255: readers disagree on what those mean."""
    a = _called(s, op, layout, {**options, "values": "corners", "tokens": 24})
    page, _, tail = written_bytes(op, a)
    found = a["k_cache"].numpy()[page[:, None], tail[:, :7]]
    require(((found > 0) & (found < 255)).all(), f"{op}: scale bytes {np.unique(found)} hold 0 or 255")


@case(
    "layout/{layout}/{writer}/padding_untouched",
    level="layout", layout=("fp8_ds_mla", "fp8_ds_mla_fnuz"), writer=MAIN_WRITERS, catches=("A9", "D13"),
)  # fmt: skip
def padding_untouched(s: Subject, op: str, options: dict[str, Any], layout: str) -> None:
    """Bytes behind the last scale row of a page stay what they were."""
    rows = 5
    a = _called(s, op, layout, {**options, "rows": rows})
    behind = a["k_cache"][:, rows * 584 :]
    require(
        bool((behind == POISON).all()), f"{op}: {int((behind != POISON).sum())} padding bytes were written"
    )


@case(
    "layout/{layout}/{writer}/other_rows_untouched",
    level="layout", layout=("fp8_ds_mla", "bf16_row", "fp8_row"), writer=MAIN_WRITERS, catches=("A1", "D13"),
)  # fmt: skip
def other_rows_untouched(s: Subject, op: str, options: dict[str, Any], layout: str) -> None:
    """Rows without a slot in this call keep every byte."""
    a = _called(s, op, layout, options)
    written = written_slots(op, a)
    others = np.setdiff1d(np.arange(a["k_cache"].shape[0] * a["rows"]), written)
    front, tail = reference.records(layout, a["k_cache"].numpy(), others, a["rows"])
    wrong = others[(front != POISON).any(1) | (tail != POISON).any(1)]
    require(
        not wrong.size, f"{op}: rows at slots {wrong[:8]} changed, though only {written[:8]}.. were named"
    )


@case(
    "layout/{layout}/write/sign_of_zero",
    level="layout",
    layout=tuple(CODES),
    ops=[WRITE["op"]],
    catches=("B1",),
)
def sign_of_zero(s: Subject, layout: str) -> None:
    """-0 is 0x80 in OCP e4m3 and 0x00 in FNUZ, where 0x80 means NaN."""
    values = np.tile(np.array([-0.0, 0.0, -(2.0**-40), 1.0], dtype=np.float32), (3, 128))
    a = make("quantize_and_insert_k_cache", tokens=3, layout=layout, values=values)
    s.call("quantize_and_insert_k_cache", a)
    page, front, _ = written_bytes("quantize_and_insert_k_cache", a)
    found = a["k_cache"].numpy()[page[:, None], front[:, : CODES[layout]]]
    code = 0x00 if layout.endswith("fnuz") else 0x80
    require((found[:, 0::4] == code).all(), f"-0 must be {code:#04x}, got {found[0, 0]:#04x}")
    require((found[:, 1::4] == 0).all(), f"+0 must be 0x00, got {found[0, 1]:#04x}")
    require((found[:, 2::4] == code).all(), f"what rounds to -0 must be {code:#04x}, got {found[0, 2]:#04x}")


@case(
    "layout/{layout}/{writer}/length_{length}",
    level="layout", layout=("fp8_ds_mla", "bf16_row"),
    writer=({"name": "compress4", "ratio": 4, "head_dim": 512},),
    length=(3, 4, 5, 7, 8, 9), ops=["compress_norm_rope_store"], catches=("E1", "E10", "E11"),
)  # fmt: skip
@case(
    "layout/{layout}/{writer}/length_{length}",
    level="layout", layout=("fp8_ds_mla", "bf16_row"),
    writer=({"name": "compress128", "ratio": 128, "head_dim": 512},),
    length=(127, 128, 129, 256), ops=["compress_norm_rope_store"], catches=("E1", "E10", "E11"),
)  # fmt: skip
@case(
    "layout/{layout}/{writer}/length_{length}",
    level="layout", layout=("index_fp8", "index_mxfp4"),
    writer=({"name": "compress4", "ratio": 4, "head_dim": 128},),
    length=(3, 4, 5, 8), ops=["compress_norm_rope_store"], catches=("E1", "E10", "E11"),
)  # fmt: skip
def prompt_length(s: Subject, layout: str, ratio: int, head_dim: int, length: int) -> None:
    """A prompt of this length gives floor(length / ratio) entries; the first window has no older half."""
    a = make(
        "compress_norm_rope_store",
        lengths=(length,),
        ratio=ratio,
        head_dim=head_dim,
        layout=layout,
        place=PACKED,
    )
    entries = len(written_slots("compress_norm_rope_store", a))
    assert entries == length // ratio
    s.check("compress_norm_rope_store", a)


@case(
    "op/{op}/bytes/page_bytes_may_be_more",
    op=tuple(op for op in PAGES if PAGES[op] != ("state_cache",)),
    level="layout",
    catches=("A8", "A11"),
)
def longer_pages(s: Subject, op: str) -> None:
    """Pages may have more bytes than the layout needs: writers keep those, and rows are found by `rows`."""
    a = make(op, rows=5, **({"extra_rows": 5} if "swa_cache" in PAGES[op] else {}))
    for name in PAGES[op]:
        pages = a[name]
        if pages.dtype == torch.uint8:
            a[name] = raw_pages(pages.shape[0], pages.shape[1] + 1000, PACKED)
            a[name][:, : pages.shape[1]] = pages
    s.check(op, a)
