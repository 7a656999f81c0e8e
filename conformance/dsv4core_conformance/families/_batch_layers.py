"""Batches of whole layers: what the cases of BATCH do with several requests of a world."""

from __future__ import annotations

from dsv4core_conformance.compare import require
from dsv4core_conformance.families._layers import (
    World,
    close_rows,
    right_outputs,
    right_records,
    same_records,
    same_rows,
    text,
    trace_of,
)
from dsv4core_conformance.subject import Subject

STEPS = ({"a": 130, "b": 3, "c": 61}, {"a": 1, "b": 1, "c": 1}, {"b": 5, "a": 1}, {"a": 1, "b": 1, "c": 68})
"""Prefill, decode, both, a request that waits; "c" ends at 130 tokens."""


def alone_and_together(s: Subject, kind: str, *, bits: bool) -> None:
    """Three requests in one cache against each in a cache of its own, step by step."""
    together = World(s, kind)
    alone = {name: World(s, kind) for name in "abc"}
    for new in STEPS:
        outs = together.step(new)
        for name, count in new.items():
            own, start = alone[name].step({name: count})[name], alone[name].cache.length(name) - count
            sure = trace_of(together, name, start + count).sure[start : start + count]
            if bits:
                same_rows(f"request {name!r} alone against in a batch", outs[name], own)
            else:
                close_rows(s, f"request {name!r} alone against in a batch", outs[name], own, sure)
            right_outputs(together, outs[name], start, name)
    for name in "abc":
        same_records(f"request {name!r} in a batch", together.records(name), alone[name].records(name))
        right_records(together, name)


def any_order(s: Subject, kind: str) -> None:
    """Requests named in another order every step; one leaves, one comes, states stay with their request."""
    w = World(s, kind)
    together = {"a": 1, "b": 1, "c": 1}
    for new in ({"a": 126, "b": 5, "c": 124}, {"c": 1, "a": 1, "b": 1}, {"b": 1, "c": 6, "a": 1}, together):
        _right_step(w, new)
    w.cache.free("b")
    for new in ({"d": 3, "c": 1, "a": 1}, {"a": 1, "d": 1, "c": 1}, {"c": 2, "d": 4}):
        _right_step(w, new)
    for name in w.cache.requests:
        right_records(w, str(name))


def _right_step(w: World, new: dict[str, int], pad_to: int | None = None) -> None:
    starts = {name: w.cache.length(name) if name in w.cache.requests else 0 for name in new}
    for name, out in w.step(new, pad_to=pad_to).items():
        right_outputs(w, out, starts[name], name)


def padded(s: Subject, kind: str) -> None:
    """Steps filled up with padding rows: outputs and bytes of the live ones, nothing from the padding."""
    w = World(s, kind)
    for new, pad_to in (
        ({"a": 127, "b": 3}, 160),
        ({"a": 1, "b": 1}, 8),
        ({"b": 1}, 8),
        ({"a": 6, "b": 1}, 16),
    ):
        _right_step(w, new, pad_to)
    before = {name: w.records(name) for name in "ab"}
    require(w.step({}, pad_to=8) == {}, "an idle step has outputs")
    for name in "ab":
        same_records("after an idle step", w.records(name), before[name])
        right_records(w, name)


def finishing(s: Subject, kind: str, requests: int) -> None:
    """Many requests of different lengths that leave at different steps while others come."""
    w = World(s, kind, requests=requests, tokens=8192)
    names = [f"f{i}" for i in range(requests)]
    w.step({name: 1 + 37 * i % 140 for i, name in enumerate(names)})
    for round_ in range(6):
        leaving = [name for i, name in enumerate(names) if i % 6 == round_ and name in w.cache.requests]
        live = [str(name) for name in w.cache.requests]
        _right_step(w, dict.fromkeys(live, 1))
        for name in leaving:
            right_records(w, name)
            w.cache.free(name)
        w.step({f"n{round_}": text(f"n{round_}")[: 3 + 25 * round_]})
    for name in w.cache.requests:
        right_records(w, str(name))
