"""GRAPH: a captured decode step replayed on other requests, lengths and pages is the eager step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dsv4core_conformance.case import case
from dsv4core_conformance.compare import require
from dsv4core_conformance.families._layers import (
    KINDS,
    LAYER_LAYOUTS,
    Records,
    World,
    right_outputs,
    right_records,
    same_records,
    text,
)
from dsv4core_conformance.families._replay import Bucket
from dsv4core_conformance.subject import LAYER_OPS, Subject

LENGTHS = {"g0": 3, "g1": 61, "g2": 124, "g3": 127, "g4": 128, "g5": 251, "g6": 5, "g7": 130}


def bucket(s: Subject, kind: str, size: int, graph: bool, **options: Any) -> Bucket:
    """Eight requests of different lengths, the first ones in a captured step."""
    if graph:
        s.need_device("a device with graphs")
        s.need_feature("graph_capture")
    threshold = {"decode_threshold": options.pop("threshold", 1)}
    w = World(s, kind, requests=10, tokens=4096, **threshold)
    w.step(LENGTHS)
    return Bucket(w, dict.fromkeys(list(LENGTHS)[:size], 1), size, graph=graph, **options)


def run(b: Bucket, new: Mapping[str, int]) -> None:
    """One replay, held against the reference: outputs and every byte of every request."""
    starts = {n: b.w.cache.length(n) for n in new}
    for n, out in b.step(new).items():
        right_outputs(b.w, out, starts[n], n)
    for n in b.w.cache.requests:
        right_records(b.w, str(n))


def sequence(b: Bucket) -> None:
    """Full, fewer rows, other requests, other pages, nothing at all, full again."""
    run(b, dict.fromkeys(LENGTHS, 1))
    run(b, {"g3": 1, "g0": 1, "g5": 1})
    run(b, {"g5": 1})
    b.w.cache.free("g4")
    b.w.cache.free("g2")
    b.w.step({"n1": 126, "n2": 7})
    run(b, {"n1": 1, "g7": 1, "n2": 1})
    run(b, {})
    run(b, {"g0": 1, "g1": 1, "g3": 1, "g5": 1, "g6": 1, "g7": 1, "n1": 1, "n2": 1})


HOW = ({"name": "in_place", "graph": False}, {"name": "replay", "graph": True})
CATCHES = ("H1", "H3", "H4", "H5", "H6", "H8", "H9", "D11")


@case("layer/{kind}/graph/{how}", kind=KINDS, how=HOW, ops=LAYER_OPS, layouts=LAYER_LAYOUTS, catches=CATCHES)
def other_steps_in_the_same_tensors(s: Subject, kind: str, graph: bool) -> None:
    """One step's tensors, overwritten with other requests, lengths, pages and none: every step is right."""
    sequence(bucket(s, kind, 8, graph))


@case(
    "layer/{kind}/graph/capture_{how}",
    kind=KINDS,
    how=HOW,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    catches=("H10",),
)
def capture_changes_nothing(s: Subject, kind: str, graph: bool) -> None:
    """Warm-ups and the capture leave caches, lengths and outputs of the one step that was planned."""
    b = bucket(s, kind, 8, graph)
    b.replay()
    b.replay()
    require(torch.equal(b.out.cpu(), b.first), "a step run again has other outputs")
    for n, length in LENGTHS.items():
        require(b.w.cache.length(n) == length + 1, f"request {n!r} has {b.w.cache.length(n)} tokens")
        right_records(b.w, n)


@case(
    "layer/{kind}/graph/drafts_{how}",
    kind=KINDS,
    how=HOW,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    catches=("H2", "H8", "J4"),
)
def drafts_in_the_same_tensors(s: Subject, kind: str, graph: bool) -> None:
    """Steps of several tokens a request in one bucket, filled exactly and partly, with rejected drafts."""
    b = bucket(s, kind, 8, graph, threshold=8)
    for new in ({"g3": 4, "g5": 4}, {"g3": 8}, {"g0": 2, "g2": 3, "g7": 1}, {"g5": 5}, {"g2": 4, "g5": 4}):
        run(b, new)
        for n, count in new.items():
            b.w.cache.truncate(n, b.w.cache.length(n) - count // 2)


@case(
    "layer/hca/graph/width_{width}_{how}",
    width=(128, 1024),
    how=HOW,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    catches=("H7",),
)
def lists_wider_than_needed(s: Subject, width: int, graph: bool) -> None:
    """Lists of ratio-128 entries as wide as the longest request a graph is for: the lengths count."""
    sequence(bucket(s, "hca", 8, graph, c128_width=width))


@case(
    "layer/{kind}/graph/size_{size}",
    kind=KINDS,
    size=(1, 2, 7),
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    catches=("H2", "H1"),
)
def odd_bucket_sizes(s: Subject, kind: str, size: int) -> None:
    """Captured graphs of other sizes, exactly full."""
    b = bucket(s, kind, size, graph=True)
    for _ in range(3):
        run(b, dict.fromkeys(list(LENGTHS)[:size], 1))


@case("layer/{kind}/graph/poisoned", kind=KINDS, ops=LAYER_OPS, layouts=LAYER_LAYOUTS, catches=("H6", "D11"))
def poison_between_replays(s: Subject, kind: str) -> None:
    """NaN in everything the allocator hands out between replays reaches nothing."""
    b = bucket(s, kind, 8, graph=True)

    def poison() -> None:
        held = [torch.full((1 << 20,), torch.nan, device=s.device) for _ in range(16)]
        b.out.fill_(torch.nan)
        del held

    for new in (dict.fromkeys(LENGTHS, 1), {"g1": 1, "g6": 1}):
        starts = {n: b.w.cache.length(n) for n in new}
        for n, out in b.step(new, poison).items():
            right_outputs(b.w, out, starts[n], n)
            right_records(b.w, n)


@case(
    "layer/{kind}/graph/identical_rows",
    kind=KINDS,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    catches=("H3", "L5"),
)
def identical_rows_are_identical(s: Subject, kind: str) -> None:
    """Eight requests with one text give eight equal rows, in a step planned anew and in one used again."""
    w = World(s, kind, requests=8, tokens=2048)
    names = [f"i{n}" for n in range(8)]
    w.step({n: text("a")[:126] for n in names})
    caches: list[Records] = []
    for at in (126, 127, 128):
        out = w.step({n: text("a")[at : at + 1] for n in names})
        again = _again(w, {n: text("a")[at : at + 1] for n in names})
        for n in names:
            right_outputs(w, out[n], at, "a")
            right_outputs(w, again[n], at, "a")
    caches = [w.records(n) for n in names]
    for n, records in zip(names, caches, strict=True):
        same_records(f"request {n!r} of eight identical ones", records, caches[0])


def _again(w: World, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The step that was planned last, once more."""
    return w.step(dict(rows), plan=w.plan)
