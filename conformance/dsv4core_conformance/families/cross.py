"""Cases of the family CROSS: what one backend writes another one reads, and no id is taken for another.

With a single backend here, its bytes are held against hashes of the reference's bytes that were pinned when
the vectors were made: they are what every other backend writes.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsv4core import AttentionConfig
from dsv4core.errors import DSV4CoreError
from dsv4core_conformance.case import case
from dsv4core_conformance.compare import Mismatch, require
from dsv4core_conformance.hosts import bits, cloned, to_numpy
from dsv4core_conformance.inputs import make
from dsv4core_conformance.inputs.numbers import integers, tensor
from dsv4core_conformance.inputs.writers import INDEX_WRITERS, MAIN_WRITERS, written_slots
from dsv4core_conformance.reference import rows as reference
from dsv4core_conformance.reference.rows import INDEX, MAIN
from dsv4core_conformance.refusal import refused
from dsv4core_conformance.subject import Subject, others
from dsv4core_conformance.vectors import (
    load,
    manifest,
    page_set,
    pinned,
    pinned_arguments,
    row_set,
    score_set,
)
from dsv4core_conformance.vectors.flags import FLAGS

GATHER, COMPRESS = "dequantize_and_gather_k_cache", "compress_norm_rope_store"
INSERT, QUERY = "fused_qnorm_rope_kv_insert", "fused_indexer_q_rope_quant"


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


@case(
    "layout/{layout}/vectors/{flag}",
    level="layout", layout=row_set.LAYOUTS, flag=tuple(FLAGS), ops=[INSERT],
    catches=sorted({row for flag in FLAGS.values() for row in flag.catches}),
)  # fmt: skip
def flagged(s: Subject, layout: str, flag: str) -> None:
    """Rows of the frozen vectors that carry this flag are written as the vectors say."""
    slots = load("rows_slot_mapping.bin")
    a = make(
        INSERT,
        layout=layout,
        rows=row_set.ROWS,
        pages=row_set.PAGES,
        tokens=len(slots),
        positions=range(len(slots)),
    )
    a.update(kv=tensor(load("rows_kv.bin"), "bf16"), cos_sin=tensor(load("rows_cos_sin.bin")))
    s.call(INSERT, {**a, "slot_mapping": integers(slots)})
    got, wanted = a["k_cache"].numpy(), load(f"rows_{layout}.bin")
    if flag in ("PadNotZeroed", "SlotMinusOne"):
        wrong = np.argwhere(got != wanted)
        wrong = wrong[_outside(layout, slots, got.shape)[tuple(wrong.T)]] if len(wrong) else wrong
        require(
            not len(wrong),
            f"{flag}: {len(wrong)} bytes outside of the written values differ, first {wrong[:1]}",
        )
        return
    for row in manifest()["rows"]:
        if flag in row["flags"]:
            mine, theirs = (
                reference.records(layout, x, np.array([row["slot"]]), row_set.ROWS) for x in (got, wanted)
            )
            for part, m, t in zip(("front", "scale"), mine, theirs, strict=True):
                bad = np.flatnonzero(m[0] != t[0])
                if bad.size:
                    raise Mismatch(
                        f"{flag}: row {row['row']} ({row['comment']}): {part} byte {bad[0]}: expected "
                        f"{t[0][bad[0]]:02x}, got {m[0][bad[0]]:02x}; {bad.size} bytes differ. "
                        f"{FLAGS[flag].meaning}"
                    )


def _outside(layout: str, slots: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Bytes of the canvas that hold no written value: pads, other rows, scale byte 7. Shapes: -> [N, B]"""
    outside = np.ones(shape, dtype=bool)
    page, front, tail = reference.places(layout, slots[slots >= 0], row_set.ROWS)
    outside[page[:, None], front] = False
    outside[page[:, None], tail[:, :7]] = False
    return outside


@case(
    "layout/{layout}/vectors/index_scores",
    level="layout", layout=score_set.LAYOUTS, ops=[QUERY, "indexer_logits", "indexer_topk", "sparse_indexer"],
    catches=("A3", "A15", "B11", "L1", "L4", "L7"),
)  # fmt: skip
def index_scores(s: Subject, layout: str) -> None:
    """Queries, scores and lists of frozen keys with outliers: a rotation left out on one side shows."""
    rotate = "hadamard" if layout in reference.ROTATED else "none"
    q, weights, context = load("scores_q.bin"), load("scores_weights.bin"), load("scores_context.bin")
    table = tensor(np.concatenate((np.ones((1, 32)), np.zeros((1, 32))), axis=1))
    a = {
        "positions": integers(np.zeros(len(q))), "q": tensor(q, "bf16"), "cos_sin": table,
        "weights": tensor(weights), "softmax_scale": 1.0, "head_scale": 1.0, "format": "mxfp4",
        "rotate": rotate,
    }  # fmt: skip
    values, scales, folded = s.check(QUERY, a).results
    b = {
        "q": values, "q_scales": scales, "weights": folded,
        "k_cache": torch.from_numpy(load(f"scores_{layout}_page.bin")),
        "context_lens": integers(context, torch.int32),
        "token_to_req": integers(np.zeros(len(q)), torch.int32),
        "block_table": integers([[0]], torch.int32), "rows": score_set.ROWS,
        "layout": layout, "rotate": rotate,
    }  # fmt: skip
    wanted, lists = load(f"scores_{layout}_logits.bin"), load(f"scores_{layout}_lists.bin")
    got = to_numpy(s.check("indexer_logits", {**b, "max_len": wanted.shape[1]}).results[0])
    seen = np.isfinite(wanted)
    gap = np.abs(got[seen] - wanted[seen]).max() / np.abs(wanted[seen]).max()
    require(
        gap <= 1e-5, f"scores differ from the frozen ones by {gap:.1e} of the largest: is one side unrotated?"
    )
    s.check("sparse_indexer", {**b, "k": score_set.TOP_K, "workspace_bytes": 1 << 26})
    frozen = {"logits": tensor(wanted), "context_lens": integers(context, torch.int32), "k": score_set.TOP_K}
    chosen = to_numpy(s.call("indexer_topk", frozen)[0])
    require(
        (chosen == lists).all(),
        f"lists of frozen scores differ: ties go to the lower index; got {chosen.tolist()}",
    )


_WRONG_LAYOUTS = tuple(
    {"name": f"{op}_{argument}_as_{wrong or 'nothing'}", "op": op, "argument": argument, "wrong": wrong}
    for op, argument, wrongs in (
        (GATHER, "layout", ("index_fp8", "fp8_ds_mla_v9", "")),
        ("fused_qnorm_rope_kv_insert", "layout", ("index_fp8", "fp8_ds_mla_v9")),
        ("quantize_and_insert_k_cache", "layout", ("index_mxfp4", "state_f32")),
        ("sparse_decode", "layout", ("index_fp8", "unknown")),
        ("sparse_decode", "extra_layout", ("index_fp8", "unknown")),
        ("indexer_logits", "layout", ("fp8_ds_mla", "index_mxfp4", "index_fp8_hadamard_f32", "index_f32")),
        ("sparse_indexer", "layout", ("bf16_row", "index_mxfp4_hadamard")),
        (COMPRESS, "layout", ("index_fp8", "index_mxfp4_hadamard", "state_f32")),
    )
    for wrong in wrongs
)


@case(
    "suite/cross/refuses/{which}",
    level="layout", which=_WRONG_LAYOUTS, catches=("A4", "A5", "A14", "A15"),
)  # fmt: skip
def wrong_layout(s: Subject, op: str, argument: str, wrong: str) -> None:
    """A page's bytes are never used under an id that cannot be theirs: an error, and nothing changes."""
    refused(s, op, {**make(op), argument: wrong}, f"{argument}={wrong!r}")


@case(
    "layout/{layout}/refuses/other_rotation",
    level="layout", layout=INDEX, ops=[COMPRESS, "indexer_logits"], catches=("A14", "A15"),
)  # fmt: skip
def wrong_rotation(s: Subject, layout: str) -> None:
    """Rotating only one of queries and keys cannot be said: `rotate` must be the layout's own."""
    other = "none" if layout in reference.ROTATED else "hadamard"
    a = make(COMPRESS, layout=layout, head_dim=128)
    refused(s, COMPRESS, {**a, "rotate": other}, f"rotate={other!r} for {layout}")
    for op in ("indexer_logits", "sparse_indexer"):
        refused(s, op, {**make(op, layout=layout), "rotate": other}, f"rotate={other!r} for {layout}")


@case(
    "layout/{layout}/refuses/smaller_page",
    level="layout", layout=MAIN, ops=[GATHER, "quantize_and_insert_k_cache"], catches=("A9", "A13"),
)  # fmt: skip
def smaller_page(s: Subject, layout: str) -> None:
    """Pages that cannot hold as many rows as the call says are refused."""
    for op in (GATHER, "quantize_and_insert_k_cache"):
        refused(s, op, {**make(op, layout=layout), "rows": 512}, "a page too small for its rows")


@case("suite/cross/interleaved_shape_is_refused", level="layout", catches=("A1", "A2", "A9"))
def interleaved_shape(s: Subject) -> None:
    """Pages shaped [N, rows, 584] would say that a record is contiguous, which it is not."""
    for op in (GATHER, "quantize_and_insert_k_cache"):
        a = make(op)
        pages = a["k_cache"]
        shaped = torch.zeros((len(pages), a["rows"], 584), dtype=torch.uint8)
        refused(s, op, {**a, "k_cache": shaped}, "a cache shaped [N, rows, 584]")


@case("suite/cross/import_checks_the_layout", level="layout", catches=("A5", "A15", "A16"))
def foreign_export(s: Subject) -> None:
    """A request exported with one index layout is not admitted to a cache of another with rows as long."""
    cache = s.cache(AttentionConfig.preset("tiny", profile="vllm"), 1, 512)
    cache.plan({"a": 40})
    export = cache.export("a")
    for profile in ("sglang", "official"):
        other = s.cache(AttentionConfig.preset("tiny", profile=profile), 1, 512)
        try:
            other.import_(export, "b")
        except DSV4CoreError:
            continue
        raise Mismatch(f"pages of profile vllm were admitted to a cache of profile {profile}")


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
