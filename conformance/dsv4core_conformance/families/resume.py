"""RESUME: a prefix goes on elsewhere, at every legal length, as if it had never stopped."""

from __future__ import annotations

from typing import Any

import torch

from dsv4core import RequestExport
from dsv4core.errors import CacheError, OutOfPagesError
from dsv4core_conformance.case import case
from dsv4core_conformance.compare import Mismatch, require
from dsv4core_conformance.families._layers import (
    KINDS,
    LAYER_LAYOUTS,
    World,
    right_outputs,
    right_records,
    same_records,
    same_rows,
    text,
    trace_of,
    trace_of_rows,
)
from dsv4core_conformance.subject import LAYER_OPS, Subject

BOUNDARIES = (1, 3, 4, 6, 64, 126, 127, 128, 129, 131, 192, 255, 256, 257, 259)
DIVERGING = (3, 128, 131, 256)  # lengths whose continuation is another text, held against the reference


def occupied(s: Subject, kind: str, **options: Any) -> World:
    """A world in which every seat and page that comes next was another request's."""
    w = World(s, kind, requests=len(BOUNDARIES) + 3, tokens=4096, **options)
    w.feed("x", [150])
    w.step({"y": 9, "z": 131})
    for request in ("x", "y", "z"):
        w.cache.free(request)
    return w


def go_on(w: World, request: str, length: int) -> None:
    """Continue a resumed request with another text and hold everything against the reference."""
    rows = torch.cat([text("a")[:length], text("other")[:7]])
    trace = trace_of_rows(w, rows)
    at = length
    for count in (1, 5, 1):
        right_outputs(w, w.step({request: rows[at : at + count]})[request], at, request, trace)
        at += count
    right_records(w, request, trace)


@case(
    "layer/{kind}/resume/fork",
    kind=KINDS,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    catches=("K1", "K2", "K7", "K8", "E12"),
)
def forked_prefixes(s: Subject, kind: str) -> None:
    """A prefix of every length, forked in passing, has its bytes when its source is gone, and goes on."""
    w = occupied(s, kind)
    w.feed("a", [260])
    for length in BOUNDARIES:
        w.cache.fork("a", ("prefix", length), length=length)
    w.feed("a", [3, 1])
    right_records(w, "a")
    w.cache.free("a")
    for length in BOUNDARIES:
        name: Any = ("prefix", length)
        same_records(f"a prefix of {length} tokens", w.records(name), trace_of(w, "a", 260).records(length))
    for length in DIVERGING:
        w.cache.fork(("prefix", length), "r")
        go_on(w, "r", length)
        name = ("prefix", length)
        same_records("the prefix itself", w.records(name), trace_of(w, "a", 260).records(length))
        w.cache.free("r")


@case(
    "layer/{kind}/resume/other_slot",
    kind=KINDS,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    catches=("K1", "K4", "K8"),
)
def exported_prefixes(s: Subject, kind: str) -> None:
    """A prefix as bytes, seated where another request's rows lie, goes on with the bits of the model."""
    w = occupied(s, kind)
    w.feed("a", [260])
    exports = {length: w.cache.export("a", length=length).to_bytes() for length in BOUNDARIES}
    w.cache.free("a")
    for length, data in exports.items():
        w.cache.import_(RequestExport.from_bytes(data), "r")
        same_records(f"{length} tokens imported", w.records("r"), trace_of(w, "a", 260).records(length))
        if length in DIVERGING:
            go_on(w, "r", length)
        w.cache.free("r")


@case("layer/{kind}/resume/illegal", kind=KINDS, ops=LAYER_OPS, layouts=LAYER_LAYOUTS, catches=("K1", "K7"))
def an_illegal_boundary_is_refused(s: Subject, kind: str) -> None:
    """Lengths whose window or states are gone are refused, with nothing changed."""
    w = World(s, kind)
    w.feed("a", [250, 10])
    low, high = w.cache.resume_range("a")
    require(high == 260 and high - low >= 8, f"resume_range is {low} to {high} of 260 tokens")
    before = w.records("a")
    for length in (0, 1, 5, 64, 128, low - 1, 261):
        for what in ("fork", "export"):
            try:
                w.cache.fork("a", "b", length=length) if what == "fork" else w.cache.export(
                    "a", length=length
                )
            except CacheError:
                pass
            else:
                raise Mismatch(f"{what} at {length} of 260 tokens was accepted; legal are {low} to {high}")
    require(w.cache.requests == ("a",), "a refused fork left a request behind")
    same_records("after refused forks", w.records("a"), before)


@case(
    "layer/{kind}/resume/diverging",
    kind=KINDS,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    catches=("K4", "K9", "K1"),
)
def branches_share_only_what_is_equal(s: Subject, kind: str) -> None:
    """Two requests with one prefix diverge in one batch, after the first page and inside one."""
    w = World(s, kind, tokens=2048)
    for length in (64, 130, 256):
        w.feed("a", [length])
        w.cache.fork("a", "b")
        rows = {"a": text("a")[length:], "b": text("other")}
        at = 0
        for count in (1, 4, 1):
            w.step({n: part[at : at + count] for n, part in rows.items()})
            at += count
        right_records(w, "a")
        right_records(w, "b", trace_of_rows(w, torch.cat([text("a")[:length], text("other")[:at]])))
        w.cache.free("a")
        w.cache.free("b")
    w.cache.check_invariants()


@case(
    "layer/{kind}/resume/after_drafts",
    kind=KINDS,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    catches=("K2", "K6", "J2"),
)
def resumed_after_rejected_drafts(s: Subject, kind: str) -> None:
    """After drafts were rejected every length back to max_rollback can be resumed, none is rounded down."""
    w = World(s, kind, decode_threshold=8)
    w.feed("a", [126])
    w.step({"a": torch.cat([text("a")[126:129], text("draft")[:5]])})
    w.cache.truncate("a", 129)
    low, high = w.cache.resume_range("a")
    require(high == 129 and low <= 126, f"129 tokens after rejected drafts resume at {low} to {high}")
    for length in (126, 128, 129):
        w.cache.fork("a", "r", length=length)
        require(w.cache.length("r") == length, f"a resume at {length} has {w.cache.length('r')} tokens")
        go_on(w, "r", length)
        w.cache.free("r")


@case(
    "layer/{kind}/resume/replay",
    kind=KINDS,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    needs=("batch_invariant_linear",),
    catches=("K7", "K8", "K11"),
)
def replayed_tokens_have_their_bits(s: Subject, kind: str) -> None:
    """Tokens taken back and given again, here, in a fork and in an import, have the same bits each time."""
    w = World(s, kind)
    w.feed("a", [124])
    export = w.cache.export("a")
    once = w.feed("a", [1] * 6)
    w.cache.truncate("a", 124)
    same_rows("taken back and given again", w.feed("a", [1] * 6), once)
    w.cache.fork("a", "f", length=124)
    w.cache.import_(export, "i")
    for request in ("f", "i"):
        rows = [w.step({request: text("a")[p : p + 1]})[request] for p in range(124, 130)]
        same_rows(f"given to request {request!r}", torch.cat(rows), once)


@case("suite/resume/granularity", catches=("K2", "K3", "K5", "K6"))
def every_length_is_a_boundary(s: Subject) -> None:
    """For every set of layers all lengths of resume_range are accepted by fork, export and import alike."""
    for kind in KINDS:
        w = World(s, kind, tokens=2048)
        for count in (131, 1, 1, 9, 3):
            w.feed("a", [count])
            low, high = w.cache.resume_range("a")
            least = max(0, w.cache.length("a") - count - w.cache.limits.max_rollback)
            require(
                high == w.cache.length("a") and low <= least, f"{kind}: {low} to {high} after {count} tokens"
            )
            for length in {low, low + 1, (low + high) // 2, high - 1, high}:
                if low <= length <= high:
                    w.cache.fork("a", "f", length=length)
                    w.cache.import_(w.cache.export("a", length=length), "i")
                    require(
                        w.cache.length("f") == w.cache.length("i") == length, f"{kind}: not {length} tokens"
                    )
                    w.cache.free("f")
                    w.cache.free("i")


@case("suite/resume/admission", catches=("K14", "K3"))
def admission_is_the_work_of_plan(s: Subject) -> None:
    """can_admit says what plan does; a request that fits the capacity is admitted, whatever groups it has."""
    for kind in KINDS:
        w = World(s, kind, tokens=700, requests=3, limits={"max_chunk": 700})
        require(w.cache.can_admit({"long": 700}), f"{kind}: a request of the whole capacity is not admitted")
        w.feed("a", [260])
        for new in ({"b": 440}, {"b": 441}, {"a": 1, "b": 439}, {"b": 1, "c": 1, "d": 1}):
            answer = w.cache.can_admit(new)
            try:
                w.cache.plan(new)
            except (CacheError, OutOfPagesError) as error:
                require(not answer and answer.reason == str(error), f"{kind}: {new}: can_admit said {answer}")
                continue
            require(answer, f"{kind}: {new} was planned, can_admit said {answer.reason}")
            for request in new:
                if request == "a":
                    w.cache.truncate("a", 260)
                else:
                    w.cache.free(request)
