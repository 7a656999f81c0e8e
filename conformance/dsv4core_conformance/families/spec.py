"""SPEC: drafts that are verified and rejected leave nothing behind, at any width, acceptance and phase."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsv4core import AttentionConfig
from dsv4core.plan import BatchPlan
from dsv4core_conformance.case import case
from dsv4core_conformance.compare import require, same_values
from dsv4core_conformance.families._layers import (
    ENTRIES,
    KINDS,
    LAYER_LAYOUTS,
    World,
    right_outputs,
    right_records,
    same_records,
    text,
    trace_of,
)
from dsv4core_conformance.inputs.hashed import Draws
from dsv4core_conformance.subject import LAYER_OPS, Subject

STARTS = (125, 126, 127, 128)  # every phase of 4, on both sides of the window and of an entry of 128


def verify(w: World, request: str, width: int, accepted: int) -> Tensor:
    """A step of `accepted` right tokens and `width - accepted` drafts, which are then rejected."""
    start = w.cache.length(request)
    rows = text(request)[start : start + accepted]
    out = w.step({request: torch.cat([rows, text("draft")[start : start + width - accepted]])})[request]
    w.cache.truncate(request, start + accepted)
    return out[:accepted]


def drafting(s: Subject, kind: str, **options: Any) -> World:
    """A world that verifies up to 16 tokens in decode steps."""
    return World(s, kind, limits={"max_rollback": 16}, decode_threshold=16, **options)


@case(
    "layer/{kind}/spec/width_{width}",
    kind=KINDS,
    width=(2, 4, 5, 8, 12, 16),
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    catches=("E4", "J1", "J2", "J7", "J9"),
)
def every_acceptance(s: Subject, kind: str, width: int) -> None:
    """Steps of one width with 1 to all tokens accepted, from every phase: outputs and bytes as without."""
    w = drafting(s, kind)
    at = 0
    for start in STARTS if width <= 8 else STARTS[1:3]:
        w.step({"a": start - at})
        at = start
        for accepted in range(1, width + 1):
            right_outputs(w, verify(w, "a", width, accepted), start)
            right_records(w, "a")
            w.cache.truncate("a", start)


@case(
    "layer/{kind}/spec/width_{width}",
    kind=KINDS,
    width=(1, 3, 6, 7, 9, 10, 11, 13, 14, 15),
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    level="extended",
    catches=("E4", "J1", "J2", "J7"),
)
def every_other_acceptance(s: Subject, kind: str, width: int) -> None:
    """The widths in between."""
    every_acceptance(s, kind, width)


@case(
    "layer/{kind}/spec/running",
    kind=KINDS,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    catches=("E4", "J2", "J7", "J9"),
)
def a_run_of_verifications(s: Subject, kind: str) -> None:
    """Verification after verification with changing widths and acceptances, none of them undone."""
    w = drafting(s, kind)
    w.step({"a": 110})
    for round_, width in enumerate([1, 3, 4, 5, 6, 8, 7, 2, 12, 16, 4, 4]):
        start = w.cache.length("a")
        right_outputs(w, verify(w, "a", width, 1 + round_ * 5 % width), start)
        right_records(w, "a")
    right_outputs(w, w.step({"a": 5})["a"], w.cache.length("a") - 5)


@case(
    "layer/{kind}/spec/minimal_state",
    kind=KINDS,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    catches=("E4", "E5", "J1", "K7"),
)
def only_the_open_windows_are_read(s: Subject, kind: str) -> None:
    """All but the last 128 window rows and the open compressor windows (8 rows in ratio 4) may be NaN."""
    ratio = {"swa": 1, "csa": 4, "hca": 128}[kind]
    for start in (*STARTS, 131):
        w = drafting(s, kind)
        w.feed("a", [start])
        used = {"swa": start - 127}
        if kind != "swa":
            first = start // ratio * ratio - (ratio if kind == "csa" else 0)
            used |= {group: first for group in w.storages() if group.startswith("state_")}
        assert w.plan is not None
        for group, first in used.items():
            rows = w.plan.rows[group]
            row = np.arange(max(first, 0))
            table = w.plan.tables[group][0].cpu().numpy().astype(np.int64)
            slots = torch.from_numpy(table[row // rows] * rows + row % rows)
            storage = w.storages()[group]
            if storage.dtype == torch.float32:
                storage[slots // rows, slots % rows] = torch.nan
            else:
                pages = storage.cpu()
                bytes_ = (slots % rows)[:, None] * 576 + torch.arange(576)
                pages[(slots // rows)[:, None], bytes_] = 0x7F
                storage.copy_(pages)
        right_outputs(w, w.step({"a": 9})["a"], start)
        got, wanted = w.records("a"), trace_of(w, "a", start + 9).records(start + 9)
        for group in ENTRIES[kind]:
            same_records(
                "after the rows nobody needs were poisoned", {group: got[group]}, {group: wanted[group]}
            )


@case(
    "layer/{kind}/spec/plans_are_their_own",
    kind=KINDS,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    catches=("J4", "I5"),
)
def a_finished_plan_is_not_read_again(s: Subject, kind: str) -> None:
    """Garbage in every tensor of the plans before changes nothing: no step lives on another's metadata."""
    w = drafting(s, kind)
    w.feed("a", [122])
    for width, accepted in ((4, 2), (4, 4), (4, 1), (8, 3)):
        assert w.plan is not None
        spoil(w.plan)
        start = w.cache.length("a")
        right_outputs(w, verify(w, "a", width, accepted), start)
        right_records(w, "a")


def spoil(plan: BatchPlan) -> None:
    """Overwrite every tensor of a plan."""
    held = [*vars(plan).values(), *plan.tables.values(), *plan.slots.values(), *plan.context_lens.values()]
    for tensor in held:
        if isinstance(tensor, Tensor):
            tensor.fill_(1)


def mixed(s: Subject, kind: str, requests: int, rounds: int) -> None:
    """Many requests, each with its own width and acceptance, join at different lengths and leave early."""
    w = drafting(s, kind, requests=requests, tokens=4096)
    names = [f"m{i}" for i in range(requests)]
    lengths = {name: [3, 61, 125, 126, 127, 128, 4, 130][i % 8] for i, name in enumerate(names)}
    out = w.step(dict(lengths))
    for round_ in range(rounds):
        live = [name for i, name in enumerate(names) if (i + round_) % 5 or round_ < 2]
        width = {name: 1 + (i + round_) % 8 for i, name in enumerate(live)}
        accepted = {name: 1 + (i * 3 + round_) % width[name] for i, name in enumerate(live)}
        rows = {
            name: torch.cat(
                [w.next_rows(name, accepted[name]), text("draft")[: width[name] - accepted[name]]]
            )
            for name in live
        }
        starts = {name: w.cache.length(name) for name in live}
        out = w.step(rows)
        for name in live:
            w.cache.truncate(name, starts[name] + accepted[name])
            right_outputs(w, out[name][: accepted[name]], starts[name], name)
    for name in names:
        right_records(w, name)


@case(
    "layer/{kind}/spec/mixed_batch",
    kind=KINDS,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    catches=("J8", "J4", "E12"),
)
def a_mixed_batch(s: Subject, kind: str) -> None:
    """Six requests of different widths, acceptances and lengths in every step."""
    mixed(s, kind, 6, 4)


@case(
    "layer/{kind}/spec/mixed_batch_of_20",
    kind=KINDS,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    level="extended",
    catches=("J8",),
    limit=180,
)
def a_large_mixed_batch(s: Subject, kind: str) -> None:
    """Twenty of them, for ten steps."""
    mixed(s, kind, 20, 10)


PLANS: tuple[dict[str, Any], ...] = (
    {"name": "decode", "queries": (1, 1, 1), "lengths": (1, 129, 700), "pad_to": None},
    {"name": "drafts", "queries": (8, 5, 2, 8), "lengths": (8, 130, 300, 131), "pad_to": 32},
    {"name": "mixed", "queries": (40, 1, 9, 1), "lengths": (40, 260, 136, 128), "pad_to": 64},
    {"name": "idle", "queries": (), "lengths": (), "pad_to": 4},
)


@case("suite/spec/plan_{plan}", plan=PLANS, catches=("E4", "E6", "E13", "J1", "J9"))
def plans_agree(s: Subject, queries: Sequence[int], lengths: Sequence[int], pad_to: int | None) -> None:
    """Positions, slots, lists and lengths of a plan are those of the definition, on the host and here."""
    config = AttentionConfig.preset("tiny", decode_threshold=8)
    rows = {"swa": 64, "c4": 64, "indexer": 64, "state_c4": 4, "state_indexer": 4, "c128": 2, "state_c128": 8}
    ratio = {"c4": 4, "indexer": 4, "c128": 128}
    tables = {}
    for group, size in rows.items():
        width = 700 // ratio.get(group, 1) // size + 1
        count = max(len(queries), 1) * width
        tables[group] = torch.from_numpy(Draws("tables", size).permutation(count)).int()
        tables[group] = tables[group].view(-1, width)[: len(queries)]
    order = sorted(range(len(queries)), key=lambda i: queries[i] > 8)
    live = [(i, p) for i in order for p in range(lengths[i] - queries[i], lengths[i])]
    total = pad_to or len(live)

    def slot(group: str, i: int, row: int) -> int:
        return int(tables[group][i, row // rows[group]]) * rows[group] + row % rows[group]

    for device in dict.fromkeys(["cpu", str(s.device)]):
        plan = BatchPlan.build(
            config,
            query_lens=list(queries),
            seq_lens=list(lengths),
            tables=tables,
            pad_to=pad_to,
            device=device,
        )
        require(plan.num_tokens == total, f"a plan of {plan.num_tokens} tokens, expected {total}")
        wanted = {"positions": np.zeros(total, dtype=np.int64), "swa_lens": np.zeros(total, dtype=np.int32)}
        wanted["swa_slots"] = np.full((total, 128), -1, dtype=np.int32)
        slots = {group: np.full(total, -1, dtype=np.int64) for group in rows}
        lens = {r: np.zeros(total, dtype=np.int32) for r in (4, 128)}
        for t, (i, p) in enumerate(live):
            window = range(max(0, p - 127), p + 1)
            wanted["positions"][t], wanted["swa_lens"][t] = p, len(window)
            wanted["swa_slots"][t, : len(window)] = [slot("swa", i, row) for row in window]
            for group in rows:
                r = ratio.get(group, 1)
                if (p + 1) % r == 0:
                    slots[group][t] = slot(group, i, p // r)
            for r in lens:
                lens[r][t] = (p + 1) // r
        for name, values in wanted.items():
            same_values(f"plan on {device}: {name}", getattr(plan, name).cpu(), values)
        for group, values in slots.items():
            same_values(f"plan on {device}: slots[{group!r}]", plan.slots[group].cpu(), values)
        for r, values in lens.items():
            same_values(f"plan on {device}: context_lens[{r}]", plan.context_lens[r].cpu(), values)
        assert plan.c128_slots is not None and plan.c128_lens is not None
        same_values(f"plan on {device}: c128_lens", plan.c128_lens.cpu(), lens[128])
        every = np.full((plan.num_decode_tokens, plan.c128_slots.shape[1]), -1, dtype=np.int32)
        for t, (i, p) in enumerate(live[: len(every)]):
            every[t, : (p + 1) // 128] = [slot("c128", i, j) for j in range((p + 1) // 128)]
        same_values(f"plan on {device}: c128_slots", plan.c128_slots.cpu(), every)
