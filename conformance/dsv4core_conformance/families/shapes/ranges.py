"""Numbers that name nothing, where values are not checked: they count as none, and nothing is read there."""

from __future__ import annotations

from dsv4core_conformance.case import case
from dsv4core_conformance.families._calls import ATTENTION, TURNED, value_checks
from dsv4core_conformance.inputs import make
from dsv4core_conformance.subject import Subject

SLOTS = "compute_global_topk_indices_and_lens"
HUGE = 2**31 - 1
LISTS = {
    SLOTS: ("topk",), "sparse_prefill": ("indices",), "sparse_decode": ("swa_slots", "extra_slots"),
    TURNED: ("swa_slots", "extra_slots"),
}  # fmt: skip
"""The lists of an op."""


@case("op/{op}/shapes/out_of_range", op=(SLOTS, *ATTENTION, TURNED), catches=("D2", "D7", "D12"))
def out_of_range(s: Subject, op: str) -> None:
    """Unchecked, an entry behind its table, a slot behind the pages, a row behind the workspace is none."""
    full = {} if op == SLOTS else {"lens": "full"}
    if len(LISTS[op]) == 2:
        full |= {"extra_lens": "full"}
    for first in (1, 0):
        a = make(op, tokens=5, **full)
        counts = {
            "topk": a["block_table"].shape[1] * a["rows"] if op == SLOTS else 0,
            "indices": len(a["kv"]) if "kv" in a else 0,
            "swa_slots": len(a["swa_cache"]) * a["swa_rows"] if "swa_cache" in a else 0,
            "extra_slots": len(a["extra_cache"]) * a["extra_rows"] if "extra_cache" in a else 0,
        }
        for name in LISTS[op]:
            wrong = (counts[name], counts[name] + 5, HUGE)
            for lane, number in zip((first, 5, 8), wrong, strict=True):
                a[name][:4, lane] = number
            a[name][3] = HUGE
        with value_checks(False):
            s.check(op, a)
