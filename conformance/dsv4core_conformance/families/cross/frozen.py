"""The frozen vectors: rows by what they are about, index scores with outliers."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from dsv4core_conformance.case import case
from dsv4core_conformance.compare import Mismatch, require
from dsv4core_conformance.hosts import to_numpy
from dsv4core_conformance.inputs import make
from dsv4core_conformance.inputs.numbers import integers, tensor
from dsv4core_conformance.reference import rows as reference
from dsv4core_conformance.subject import Subject
from dsv4core_conformance.vectors import (
    load,
    manifest,
    row_set,
    score_set,
)
from dsv4core_conformance.vectors.flags import FLAGS

INSERT, QUERY = "fused_qnorm_rope_kv_insert", "fused_indexer_q_rope_quant"


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
