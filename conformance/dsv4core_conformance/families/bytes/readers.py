"""Every byte that a reader of pages can meet."""

from __future__ import annotations

import numpy as np
import torch

from dsv4core_conformance.case import case
from dsv4core_conformance.compare import require
from dsv4core_conformance.inputs import make
from dsv4core_conformance.inputs.numbers import integers
from dsv4core_conformance.inputs.pages import raw_pages
from dsv4core_conformance.inputs.writers import (
    PACKED,
)
from dsv4core_conformance.reference import rows as reference
from dsv4core_conformance.reference.rows import MAIN
from dsv4core_conformance.subject import Subject

CODES = {"fp8_ds_mla": 448, "fp8_ds_mla_fnuz": 448, "fp8_row": 512}


@case(
    "layout/{layout}/gather/page_rows_{rows}",
    level="layout", layout=MAIN, rows=(64, 2, 5), ops=["dequantize_and_gather_k_cache"],
    catches=("A6", "A8", "B1"),
)  # fmt: skip
def gather_page_rows(s: Subject, layout: str, rows: int) -> None:
    """The last rows of every request arrive dense, in order, and no other row of the workspace is written."""
    a = make(
        "dequantize_and_gather_k_cache",
        layout=layout, rows=rows, lengths=(7, 130, 0, 65), gather=(7, 66, 0, 1), place=PACKED,
    )  # fmt: skip
    s.check("dequantize_and_gather_k_cache", a)


def _gather_all(s: Subject, layout: str, pages: torch.Tensor, rows: int) -> torch.Tensor:
    """All rows of one page by the backend's gather. Shapes: u8 [1, B] -> [rows, 512]"""
    a = make(
        "dequantize_and_gather_k_cache", layout=layout, lengths=(rows,), rows=rows, offset=0, spare=0, pages=1
    )
    a["k_cache"], a["block_table"] = pages, integers([[0]], torch.int32)
    s.check("dequantize_and_gather_k_cache", a)
    return a["out"][0]


@case(
    "layout/{layout}/gather/every_code",
    level="layout", layout=tuple(CODES), ops=["dequantize_and_gather_k_cache"], catches=("A6", "B1", "B8"),
)  # fmt: skip
def every_code(s: Subject, layout: str) -> None:
    """Each of the codes that a writer can give, under each scale byte from 1 to 254, reads as its value."""
    rows, width = 64, CODES[layout]
    nan = (0x80,) if layout.endswith("fnuz") else (0x7F, 0xFF)
    codes = np.setdiff1d(np.arange(256), nan).astype(np.uint8)
    page = raw_pages(1, reference.page_bytes(layout, rows), fill=0)
    record = reference.RECORDS[layout]
    data = page.numpy()[0]
    front = data[: rows * record.front].reshape(rows, record.front)
    front[:, :width] = np.resize(codes, (rows, width))
    if record.tail:
        tail = data[rows * record.front : rows * (record.front + record.tail)].reshape(rows, record.tail)
        tail[:, :7] = np.resize(np.arange(1, 255, dtype=np.uint8), (rows, 7))
    _gather_all(s, layout, page, rows)


@case(
    "layout/{layout}/gather/every_bf16",
    level="layout", layout=("fp8_ds_mla", "bf16_row"), ops=["dequantize_and_gather_k_cache"], catches=("B8",),
)  # fmt: skip
def every_bf16(s: Subject, layout: str) -> None:
    """Finite bf16 numbers stored as they are come back bit by bit, subnormals and -0 among them."""
    rows = 128
    words = np.arange(0x10000, dtype=np.uint16)
    words = words[(words & 0x7F80) != 0x7F80]
    record, width = reference.RECORDS[layout], 512 if layout == "bf16_row" else 64
    page = raw_pages(1, reference.page_bytes(layout, rows), fill=0)
    front = page.numpy()[0][: rows * record.front].reshape(rows, record.front)
    chosen = words[:: 1 if layout == "bf16_row" else 8]
    front[:, record.front - 2 * width :] = np.resize(chosen, (rows, width)).view(np.uint8)
    _gather_all(s, layout, page, rows)


@case(
    "layout/{layout}/gather/zeroed_page_reads_zero",
    level="layout", layout=MAIN, ops=["dequantize_and_gather_k_cache"],
)  # fmt: skip
def zeroed_page(s: Subject, layout: str) -> None:
    """A fresh page of zeros holds rows of +0."""
    out = _gather_all(s, layout, raw_pages(1, reference.page_bytes(layout, 64), fill=0), 64)
    require(bool((out == 0).all()), "a zeroed page must read as zeros")
