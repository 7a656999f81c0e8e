"""Cases of the family POISON: what is not listed is not read, not even to be multiplied by zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dsv4core_conformance.case import case
from dsv4core_conformance.compare import require
from dsv4core_conformance.families._calls import (
    ATTENTION,
    INDEX_LAYOUTS,
    INDEXER,
    MAIN_LAYOUTS,
    TURNED,
    between,
    produced,
    refused,
    same_bytes,
    value_checks,
)
from dsv4core_conformance.hosts import cloned
from dsv4core_conformance.inputs import make
from dsv4core_conformance.inputs.draws import LARGE
from dsv4core_conformance.inputs.spoil import PATTERNS, read_slots, spoil_unread
from dsv4core_conformance.inputs.writers import MAIN_WRITERS, PACKED, written_bytes
from dsv4core_conformance.reference.ops.indexer_logits import entry_slots
from dsv4core_conformance.subject import Subject

DECODE, PREFILL = ATTENTION
LANES = ("D1", "D2", "D7")
TOKENS = (1, 64, 65, 128)
PLACE = {"lead": 64, "gap": 128}


@case(
    "op/sparse_decode/poison/{layout}/{pattern}",
    ops=(DECODE,),
    layout=MAIN_LAYOUTS,
    pattern=tuple(PATTERNS),
    catches=("D1", "D2", "A6"),
)
def unlisted_rows(s: Subject, layout: str, pattern: str) -> None:
    """Rows that no list names, bytes behind the last row and between pages: NaN there changes no bit."""
    options = {"layout": layout, "tokens": 4, "window": 20, "extra": 9, "holes": 0.2, "place": PLACE}
    clean = make(DECODE, **options)
    expected = [s.check(DECODE, clean).results[0], clean["out"]]
    spoiled = make(DECODE, **options)
    _spoil_decode(spoiled, pattern)
    again = s.check(DECODE, spoiled).results[0]
    same_bytes(f"{DECODE}: {pattern} in unlisted rows", [again, spoiled["out"]], expected)


@case("op/sparse_decode/poison/lanes/{tokens}", ops=(DECODE,), tokens=TOKENS, catches=LANES)
def decode_lanes(s: Subject, tokens: int) -> None:
    """Lanes behind a length and holes before it point at rows of NaN, at page 0, or far behind the pages."""
    options = {"tokens": tokens, "heads": 2, "window": 65, "extra": 64, "pages": 4, "holes": 0.1}
    clean = make(DECODE, **options, extra_pages=60)
    for name in ("swa_slots", "extra_slots"):  # page 0 (extra: pages 0 to 9) is nobody's
        first = 64 if name == "swa_slots" else 20
        slots = clean[name]
        clean[name] = torch.where((slots >= 0) & (slots < first), slots + first, slots)
    expected = [s.check(DECODE, clean).results[0], clean["out"]]
    for behind in (0, 5, LARGE, -1):
        spoiled = cloned(clean)
        _spoil_decode(spoiled, "ff")
        for name in ("swa", "extra"):
            slots, lens = spoiled[f"{name}_slots"], spoiled[f"{name}_lens"]
            slots[torch.arange(slots.shape[1]) >= lens.unsqueeze(1)] = behind
        got = produced(s, DECODE, spoiled)
        same_bytes(f"{DECODE}: {tokens} tokens, lanes behind the length at slot {behind}", got, expected)


@case("op/sparse_prefill/poison/lanes/{tokens}", ops=(PREFILL,), tokens=TOKENS, catches=LANES)
def prefill_lanes(s: Subject, tokens: int) -> None:
    """The same for the workspace of prefill, whose unlisted rows are NaN and infinite."""
    clean = make(PREFILL, tokens=tokens, heads=2, window=65, keys=400, holes=0.1)
    clean["indices"] = torch.where((clean["indices"] >= 0) & (clean["indices"] < 64), 70, clean["indices"])
    expected = [s.check(PREFILL, clean).results[0], clean["out"]]
    for behind, value in ((0, torch.nan), (63, torch.inf), (LARGE, torch.nan), (-1, -torch.inf)):
        spoiled = cloned(clean)
        unread = np.setdiff1d(np.arange(400), read_slots(clean["indices"], clean["lens"]))
        spoiled["kv"][torch.from_numpy(unread)] = value
        indices, lens = spoiled["indices"], spoiled["lens"]
        indices[torch.arange(indices.shape[1]) >= lens.unsqueeze(1)] = behind
        got = produced(s, PREFILL, spoiled)
        same_bytes(f"{PREFILL}: {tokens} tokens, lanes behind the length at row {behind}", got, expected)


@case("op/{op}/poison/out/{fill}", op=ATTENTION, fill=("nan", "inf", "-inf", "3e38"), catches=("D2", "G4"))
def output_before(s: Subject, op: str, fill: str) -> None:
    """What the output held before the call, and what stands beside it, does not show in it."""
    clean = make(op, tokens=65, heads=2, window=9, lens="mixed", fill=0.0)
    expected = [s.check(op, clean).results[0], clean["out"]]
    filled = make(op, tokens=65, heads=2, window=9, lens="mixed", fill=float(fill))
    filled["out"] = between(filled["out"], float(fill), 8, 16)
    got = [s.check(op, filled).results[0], filled["out"]]
    same_bytes(f"{op}: out full of {fill}", got, expected)


@case(
    "op/{op}/poison/{layout}/{pattern}",
    op=INDEXER,
    layout=INDEX_LAYOUTS,
    pattern=("ff", "7f", "inf32"),
    catches=("D1", "D2", "A1", "A2"),
)
def unseen_entries(s: Subject, op: str, layout: str, pattern: str) -> None:
    """Entries behind every context, other requests' pages, page padding: NaN there changes no bit."""
    options: dict[str, Any] = {"layout": layout, "lens": [65, 64, 1, 130, 0], "requests": 3, "place": PLACE}
    if op == "sparse_indexer":
        options["k"] = 40
    clean = make(op, **options)
    expected = s.check(op, clean).results
    spoiled = make(op, **options)
    plain = {name: spoiled[name].numpy() for name in ("block_table", "context_lens", "token_to_req")}
    seen = [
        entry_slots({**plain, "rows": 64}, int(r), np.arange(n))
        for r, n in zip(plain["token_to_req"], plain["context_lens"], strict=True)
    ]
    spoil_unread(spoiled["k_cache"], np.concatenate(seen), layout, 64, pattern)
    for request in range(3):  # the table names no page behind the longest context
        longest = int(plain["context_lens"][plain["token_to_req"] == request].max(initial=0))
        spoiled["block_table"][request, -(-longest // 64) :] = -1
    same_bytes(f"{op}: {pattern} in unseen entries", s.check(op, spoiled).results, expected)


@case(
    "op/compute_global_topk_indices_and_lens/poison/{value}",
    ops=("compute_global_topk_indices_and_lens",),
    value=(LARGE, 2**31 - 1, -(2**31), 63),
    catches=("D7", "M2"),
)
def padding_tokens(s: Subject, value: int) -> None:
    """Whatever the list of a padding token holds, its row is -1 and its length 0."""
    op = "compute_global_topk_indices_and_lens"
    clean = make(op, tokens=9, valid=0.5)
    spoiled = cloned(clean)
    expected = s.check(op, clean).results
    spoiled["topk"][~spoiled["is_valid"]] = value
    same_bytes(f"{op}: {value} in padding tokens", s.check(op, spoiled).results, expected)


@case("op/combine_topk_swa_indices/poison/lists", ops=("combine_topk_swa_indices",), catches=("D7", "D13"))
def behind_visible_entries(s: Subject) -> None:
    """Entries that a query may not see yet, and columns beside the list, are not copied."""
    op = "combine_topk_swa_indices"
    clean = make(op, top_k=200, spare=0)
    spoiled = make(op, top_k=200, spare=0)
    expected = s.check(op, clean).results
    row = 0
    for count, seq in zip((1, 5, 3, 0, 20), spoiled["seq_lens"].tolist(), strict=True):
        for p in range(seq - count, seq):
            spoiled["topk"][row, (p + 1) // 4 :] = 0
            row += 1
    spoiled["topk"] = between(spoiled["topk"], LARGE)
    same_bytes(f"{op}: other entries behind the visible ones", s.check(op, spoiled).results, expected)


@case("op/combine_topk_swa_indices/poison/padding", ops=("combine_topk_swa_indices",), catches=("D11", "H1"))
def rows_behind_the_last_query(s: Subject) -> None:
    """Rows behind the last query pad a step to its bucket: -1 throughout and length 0, whatever they hold."""
    op = "combine_topk_swa_indices"
    for padding in (1, 70):
        for value in (-1, 0):
            a = make(op)
            a["topk"] = torch.cat((a["topk"], a["topk"].new_full((padding, a["topk"].shape[1]), value)))
            s.check(op, a)
    a = make(op, queries=(0, 0), prefixes=(0, 9))
    a["topk"] = a["topk"].new_zeros(5, a["topk"].shape[1])
    s.check(op, a)


@case(
    "op/dequantize_and_gather_k_cache/poison/{layout}",
    ops=("dequantize_and_gather_k_cache",),
    layout=MAIN_LAYOUTS,
    catches=("A6", "D2"),
)
def ungathered_rows(s: Subject, layout: str) -> None:
    """Rows outside the gathered range hold NaN, and rows of the workspace outside it stay as they are."""
    op = "dequantize_and_gather_k_cache"
    options = {"lengths": (7, 130, 65), "gather": (3, 66, 65), "layout": layout}
    clean, spoiled = make(op, **options), make(op, **options)
    s.check(op, clean)
    table = spoiled["block_table"].numpy()
    read = []
    for b, (length, gathered) in enumerate(zip((7, 130, 65), (3, 66, 65), strict=True)):
        read.append(entry_slots({"block_table": table, "rows": 64}, b, np.arange(length - gathered, length)))
    spoil_unread(spoiled["k_cache"], np.concatenate(read), layout, 64, "ff")
    s.check(op, spoiled)
    same_bytes(f"{op}: 0xff in rows that are not gathered", [spoiled["out"]], [clean["out"]])


@case(
    "op/compress_norm_rope_store/poison/states/{ratio}",
    ops=("compress_norm_rope_store",),
    ratio=(4, 128),
    catches=("D5", "K1"),
)
def states_outside_the_window(s: Subject, ratio: int) -> None:
    """States of other requests, of tokens before the window and of tokens after it are not read."""
    op = "compress_norm_rope_store"
    options = {
        "ratio": ratio,
        "lengths": (3 * ratio + 1, ratio, 2 * ratio),
        "starts": (2 * ratio, 0, 2 * ratio - 1),
    }
    clean, spoiled = make(op, **options), make(op, **options)
    s.check(op, clean)
    rows, table = spoiled["state_cache"].shape[1], spoiled["block_table"].numpy()
    live = torch.zeros(spoiled["state_cache"].shape[:2], dtype=torch.bool)
    window = 2 * ratio if ratio == 4 else ratio
    for p, request in zip(spoiled["positions"].tolist(), spoiled["token_to_req"].tolist(), strict=True):
        if (p + 1) % ratio == 0:
            for at in range(max(p - window + 1, 0), p + 1):
                live[int(table[request, at // rows]), at % rows] = True
    spoiled["state_cache"][~live] = torch.nan
    s.check(op, spoiled)
    same_bytes(f"{op}: NaN in states outside the windows", [spoiled["k_cache"]], [clean["k_cache"]])


@case("op/{op}/poison/columns", op=("linear", "fused_indexer_q_rope_quant"), catches=("D2",))
def beside_the_columns(s: Subject, op: str) -> None:
    """NaN beside the columns that are an input does not reach a result."""
    name = "x" if op == "linear" else "q"
    clean = make(op)
    expected = produced(s, op, clean)
    spoiled = cloned(clean)
    spoiled[name] = between(spoiled[name], torch.nan, 8, 16)
    same_bytes(f"{op}: NaN beside {name}", s.check(op, spoiled).results, expected)


def _spoil_decode(arguments: dict[str, Any], pattern: str) -> None:
    """Spoil what the lists do not name in both caches."""
    for cache, name, layout, rows in (("swa_cache", "swa", "layout", "swa_rows"),
                                      ("extra_cache", "extra", "extra_layout", "extra_rows")):  # fmt: skip
        read = read_slots(arguments[f"{name}_slots"], arguments[f"{name}_lens"])
        spoil_unread(arguments[cache], read, arguments[layout], arguments[rows], pattern)


FINITE = {
    "fused_q_kv_rmsnorm": ("qr", "kv", "q_weight"),
    "fused_qnorm_rope_kv_insert": ("q", "kv"),
    "quantize_and_insert_k_cache": ("k",),
    "save_partial_states": ("kv", "score"),
    "fused_indexer_q_rope_quant": ("q", "weights"),
    "indexer_logits": ("weights",),
    "sparse_indexer": ("weights",),
    "sparse_decode": ("q",),
    "sparse_prefill": ("q",),
    "inverse_rope": ("o",),
    "fused_inv_rope_fp8_quant": ("o",),
    "grouped_output_projection": ("o",),
    "linear": ("x",),
}
"""Inputs in which a NaN or an infinity is a caller's error."""
WRITTEN = {
    "fused_qnorm_rope_kv_insert": "kv",
    "quantize_and_insert_k_cache": "k",
    "compress_norm_rope_store": "state_cache",
}
"""The argument from which a writer of pages takes its rows."""


@case("op/{op}/poison/refused_numbers", op=tuple(FINITE), catches=("D8", "B8"))
def refused_numbers(s: Subject, op: str) -> None:
    """Checked mode refuses a NaN and both infinities in an input by name, wherever they stand."""
    for name in FINITE[op]:
        for place, value in ((0, torch.nan), (-1, torch.inf), (-1, -torch.inf), (77, torch.nan)):
            arguments = make(op)
            at = np.unravel_index(place % arguments[name].numel(), arguments[name].shape)
            arguments[name][tuple(int(i) for i in at)] = value
            with value_checks(True):
                refused(s, op, arguments, f"{value} in {name}", name)


@case(
    "layout/{layout}/{writer}/finite_pages",
    level="layout", layout=("fp8_ds_mla", "fp8_ds_mla_fnuz"), writer=MAIN_WRITERS, catches=("B8", "D8"),
)  # fmt: skip
def finite_pages(s: Subject, op: str, options: dict[str, Any], layout: str) -> None:
    """Unchecked, a NaN or an infinity is written as some finite row, with no scale byte of 0 or 255."""
    name = WRITTEN[op]
    for value in (torch.nan, -torch.nan, torch.inf, -torch.inf):
        arguments = make(op, layout=layout, place=PACKED, **options)
        rows = arguments[name].flatten(0, -2)
        width = rows.shape[1] if name != "state_cache" else rows.shape[1] // 2
        rows[::2, 5], rows[1::2, width - 3], rows[::3, 200] = value, value, value
        if name == "state_cache":
            arguments[name].copy_(rows.view_as(arguments[name]))
        with value_checks(False):
            s.call(op, arguments)
        page, front, tail = written_bytes(op, arguments)
        pages = arguments["k_cache"].numpy()
        scales, codes = pages[page[:, None], tail[:, :7]], pages[page[:, None], front[:, :448]]
        turned = pages[page[:, None], front[:, 448:]].copy().view(np.uint16)
        require(((scales > 0) & (scales < 255)).all(), f"{op}: {value} gave a scale byte of 0 or 255")
        nan = (0x80,) if layout.endswith("fnuz") else (0x7F, 0xFF)
        require(not np.isin(codes, nan).any(), f"{op}: {value} gave a code that is NaN")
        require(((turned & 0x7F80) != 0x7F80).all(), f"{op}: {value} gave a bf16 that is no finite number")


@case(
    "op/{op}/poison/{layout}/{pattern}",
    op=(TURNED,), layout=MAIN_LAYOUTS, pattern=("ff", "inf32"), catches=("D1", "D2", "A6"),
)  # fmt: skip
def turned_unlisted_rows(s: Subject, op: str, layout: str, pattern: str) -> None:
    """Rows that no list names: NaN there changes no bit, of the output and of codes and scales."""
    options = {"layout": layout, "tokens": 4, "window": 20, "extra": 9, "holes": 0.2, "place": PLACE}
    for format in ("none", "f32"):
        clean, spoiled = (make(op, **options, scale_format=format) for _ in "ab")
        _spoil_decode(spoiled, pattern)
        expected = s.check(op, clean).results
        same_bytes(f"{op}: {pattern} in unlisted rows", s.check(op, spoiled).results, expected)
