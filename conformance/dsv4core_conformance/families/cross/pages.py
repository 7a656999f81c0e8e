"""What each writer wrote, what was frozen once: every reader reads it as the reference does."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsv4core_conformance.case import case
from dsv4core_conformance.compare import Mismatch, require
from dsv4core_conformance.hosts import bits, cloned
from dsv4core_conformance.inputs import make
from dsv4core_conformance.inputs.numbers import integers
from dsv4core_conformance.inputs.writers import INDEX_WRITERS, MAIN_WRITERS, written_slots
from dsv4core_conformance.reference import rows as reference
from dsv4core_conformance.reference.rows import INDEX, MAIN
from dsv4core_conformance.subject import Subject, others
from dsv4core_conformance.vectors import (
    load,
    page_set,
    pinned,
    pinned_arguments,
)

GATHER, COMPRESS = "dequantize_and_gather_k_cache", "compress_norm_rope_store"


@case(
    "layout/{layout}/{writer}/pinned_bytes",
    level="layout", layout=MAIN, writer=MAIN_WRITERS, catches=("A1", "A2", "A5", "A6", "A15"),
)  # fmt: skip
@case(
    "layout/{layout}/{writer}/pinned_bytes",
    level="layout", layout=INDEX, writer=INDEX_WRITERS, catches=("A1", "A2", "A5", "A10", "A15"),
)  # fmt: skip
def pinned_bytes(s: Subject, layout: str, op: str, options: dict[str, Any]) -> None:
    """The bytes of fixed inputs have the pinned hash, and every other backend here writes the same bytes."""
    a = pinned_arguments(op, layout, options)
    theirs = [(other, cloned(a)) for other in others(s.name) if layout in other.layouts]
    s.call(op, a)
    found = hashlib.sha256(bits(a["k_cache"])).hexdigest()
    wanted = pinned(op, layout, options)
    require(
        found == wanted,
        f"{op}: pages in {layout} have sha256 {found[:16]}.., the pinned one is {wanted[:16]}..",
    )
    for other, arguments in theirs:
        other.call(op, arguments)
        differ = int((arguments["k_cache"] != a["k_cache"]).sum())
        require(differ == 0, f"{op}: {differ} bytes of {layout} differ between {s.name} and {other.name}")


@case(
    "layout/{layout}/gather/reads_every_writer",
    level="layout", layout=MAIN, ops=[GATHER], catches=("A1", "A5", "A6", "A8"),
)  # fmt: skip
def main_readers(s: Subject, layout: str) -> None:
    """Rows that each writer of each backend wrote come back as the reference reads them."""
    for writer in MAIN_WRITERS:
        for subject in (s, *others(s.name)):
            if layout not in subject.layouts:
                continue
            a = make(writer["op"], layout=layout, **writer["options"])
            subject.call(writer["op"], a)
            slots = np.sort(written_slots(writer["op"], a))[:24]
            s.check(GATHER, _gather(a, layout, slots))


@case(
    "layout/{layout}/indexer_logits/reads_the_compressor",
    level="layout", layout=INDEX, ops=["indexer_logits", COMPRESS],
    catches=("A1", "A2", "A3", "A4", "A7", "L1"),
)  # fmt: skip
def index_reader(s: Subject, layout: str) -> None:
    """Scores of 70 entries on two pages that each backend's own compressor wrote, rows 0 to 63 among them."""
    for subject in (s, *others(s.name)):
        if layout not in subject.layouts:
            continue
        a = make(COMPRESS, layout=layout, head_dim=128, lengths=(280,), rows=64, pages=3)
        table = integers([[2, 0]], torch.int32)
        closing = a["kv_slot_mapping"].numpy() >= 0
        entries = a["positions"].numpy() // 4
        slots = reference.table_slots(table.numpy(), np.int64(0), entries, 64)
        a["kv_slot_mapping"] = integers(np.where(closing, slots, -1))
        subject.call(COMPRESS, a)
        scores = make("indexer_logits", layout=layout, requests=1, lens=(70, 64, 65))
        s.check("indexer_logits", {**scores, "k_cache": a["k_cache"], "block_table": table})


@case(
    "layout/{pages}/golden_pages",
    level="layout", ops=[GATHER], catches=("A1", "A6", "B1", "B8"),
    pages=tuple(
        {"name": f"{layout}/gather/rows_{rows}", "layout": layout, "rows": rows}
        for layout, rows, width in page_set.CASES
        if width == 512 and layout != "state_f32"
    ),
)  # fmt: skip
def golden_pages(s: Subject, layout: str, rows: int) -> None:
    """The frozen pages of a main layout read as the values they were made from, rounded."""
    pages = torch.from_numpy(load(f"{page_set.name(layout, rows, 512)}.bin"))
    a = make(GATHER, layout=layout, lengths=(3 * rows,), rows=rows, offset=0, spare=0)
    s.check(GATHER, {**a, "k_cache": pages, "block_table": integers([[0, 1, 2]], torch.int32)})


@case(
    "layout/{layout}/indexer_logits/golden_pages",
    level="layout", layout=INDEX, ops=["indexer_logits"], catches=("A1", "A2", "A3", "A10", "B1"),
)  # fmt: skip
def golden_index_pages(s: Subject, layout: str) -> None:
    """Scores of the keys in the frozen pages of an index layout."""
    rows = 12 if layout == "index_f32" else 64
    pages = torch.from_numpy(load(f"{page_set.name(layout, rows, 128)}.bin"))
    a = make("indexer_logits", layout=layout, requests=1, lens=(2 * rows, rows, rows + 1), rows=rows)
    s.check("indexer_logits", {**a, "k_cache": pages, "block_table": integers([[0, 1]], torch.int32)})


@case("suite/cross/another_id_reads_other_values", level="layout", ops=[GATHER], catches=("A5", "A15", "B1"),
      layouts=("fp8_ds_mla", "fp8_ds_mla_fnuz"))  # fmt: skip
def ids_matter(s: Subject) -> None:
    """The same bytes under the FNUZ id read as half: an id is not decoration."""
    a = make(GATHER, layout="fp8_ds_mla", values="normal")
    b = {**cloned(a), "layout": "fp8_ds_mla_fnuz"}
    s.check(GATHER, a)
    s.call(GATHER, b)
    first: Tensor = a["out"][1, a["offset"] : a["offset"] + 130, :448].float()
    second: Tensor = b["out"][1, a["offset"] : a["offset"] + 130, :448].float()
    if not torch.equal(first, 2 * second):
        raise Mismatch("codes under the FNUZ id must read as half of what they are under the OCP id")


def _gather(a: dict[str, Any], layout: str, slots: np.ndarray) -> dict[str, Any]:
    """A gather of single rows: one request per row, whose table begins with the row's page."""
    rows = a["rows"]
    page, row = np.divmod(slots, rows)
    out = make(GATHER, layout=layout, lengths=(1,) * len(slots), rows=rows)
    return {
        **out,
        "k_cache": a["k_cache"],
        "seq_lens": integers(row + 1, torch.int32),
        "gather_lens": integers(np.ones(len(slots)), torch.int32),
        "block_table": integers(page[:, None], torch.int32),
    }
