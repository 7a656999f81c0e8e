"""RACE: nothing depends on who is fast: threads, streams, late producers, buffers that are used again."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from dsv4core.runtime import new_event, new_stream
from dsv4core_conformance.case import case
from dsv4core_conformance.compare import require
from dsv4core_conformance.families._layers import (
    KINDS,
    LAYER_LAYOUTS,
    World,
    right_outputs,
    right_records,
    text,
)
from dsv4core_conformance.families.spec import spoil
from dsv4core_conformance.subject import LAYER_OPS, Subject

CHUNKS = [131, 1, 1, 70, 1, 5, 1]


@case("layer/{kind}/race/threads", kind=KINDS, ops=LAYER_OPS, layouts=LAYER_LAYOUTS, catches=("I7", "I6"))
def two_threads(s: Subject, kind: str) -> None:
    """Threads with a cache each, on one backend and one layer, have what they would have alone."""
    worlds = [World(s, kind) for _ in range(3)]
    outputs: list[Tensor | BaseException | None] = [None] * len(worlds)
    start = threading.Barrier(len(worlds))

    def work(i: int) -> None:
        try:
            start.wait(timeout=30)
            outputs[i] = worlds[i].feed("abc"[i], CHUNKS)
        except BaseException as error:  # handed to the thread that judges
            outputs[i] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(worlds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for i, (w, out) in enumerate(zip(worlds, outputs, strict=True)):
        if isinstance(out, BaseException):
            raise out
        require(out is not None, f"thread {i} did not end")
        assert out is not None
        right_outputs(w, out, 0, "abc"[i])
        right_records(w, "abc"[i])


@case(
    "layer/{kind}/race/no_sync", kind=KINDS, ops=LAYER_OPS, layouts=LAYER_LAYOUTS, catches=("I5", "I6", "I1")
)
def steps_without_waiting(s: Subject, kind: str) -> None:
    """Step after step queued without a look at a result, every plan overwritten as soon as it was used."""
    w = World(s, kind)
    outs: list[Tensor] = []
    at = 0
    for count in [124, *[1] * 12, 3, *[1] * 6]:
        plan = w.cache.plan({"a": count})
        hidden = text("a")[at : at + count].to(s.device, copy=True)
        outs.append(w.attention(hidden, w.cache, plan))
        spoil(plan)
        hidden.fill_(torch.nan)
        at += count
    right_outputs(w, torch.cat([out.cpu() for out in outs]), 0)
    right_records(w, "a")


@case(
    "layer/{kind}/race/repeats", kind=KINDS, ops=LAYER_OPS, layouts=LAYER_LAYOUTS, catches=("I1", "I3", "I8")
)
def the_same_step_again_and_again(s: Subject, kind: str) -> None:
    """A step taken back and done again (200 times on a device) leaves the same bytes each time."""
    w = World(s, kind)
    w.step({"a": 126, "b": 250})
    for _ in range(5 if s.device.type == "cpu" else 200):
        out = w.step({"a": 6, "b": 1})
        right_outputs(w, out["a"], 126, "a")
        right_outputs(w, out["b"], 250, "b")
        right_records(w, "a")
        w.cache.truncate("a", 126)
        w.cache.truncate("b", 250)


def delay(device: torch.device) -> None:
    """Keep the current stream busy for some milliseconds."""
    if device.type == "cuda":
        torch.cuda._sleep(20_000_000)
        return
    x: Any = torch.ones(2048, 2048, device=device)
    for _ in range(30):
        x = x @ x * 1e-4


@case(
    "layer/{kind}/race/late_producers",
    kind=KINDS,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    catches=("I1", "I2", "I4"),
)
def producers_are_late(s: Subject, kind: str) -> None:
    """Hidden rows and every tensor of the plan are written late on the stream that the step is queued on."""
    s.need_device("a device with streams")
    w = World(s, kind)
    w.feed("a", [126])
    for at in range(126, 134):
        plan = w.cache.plan({"a": 1})
        hidden = torch.full((1, 64), torch.nan, device=s.device).bfloat16()
        real = text("a")[at : at + 1].to(s.device)
        slots = {g: t.clone() for g, t in plan.slots.items()}
        torch.accelerator.synchronize()
        for t in plan.slots.values():
            t.fill_(-1)
        torch.accelerator.synchronize()
        delay(s.device)
        for g, t in slots.items():
            plan.slots[g].copy_(t)
        hidden.copy_(real)
        right_outputs(w, w.attention(hidden, w.cache, plan).cpu(), at)
    right_records(w, "a")


@case(
    "layer/{kind}/race/streams", kind=KINDS, ops=LAYER_OPS, layouts=LAYER_LAYOUTS, catches=("I6", "I7", "I3")
)
def two_streams(s: Subject, kind: str) -> None:
    """Two caches on two streams at once, with delays between: both have what they would have alone."""
    s.need_device("a device with streams")
    worlds = [World(s, kind), World(s, kind)]
    streams: list[Any] = [new_stream(s.device) for _ in worlds]
    outs: list[list[Tensor]] = [[], []]
    ready = new_event(s.device)
    ready.record()
    at = 0
    for round_, count in enumerate([130, 1, 1, 60, 1, 1]):
        for i in ((0, 1), (1, 0))[round_ % 2]:
            with streams[i]:
                streams[i].wait_event(ready)
                if (round_ + i) % 3 == 0:
                    delay(s.device)
                plan = worlds[i].cache.plan({"ab"[i]: count})
                rows = text("ab"[i])[at : at + count].to(s.device)
                outs[i].append(worlds[i].attention(rows, worlds[i].cache, plan))
        at += count
    torch.accelerator.synchronize()
    for i, w in enumerate(worlds):
        right_outputs(w, torch.cat([out.cpu() for out in outs[i]]), 0, "ab"[i])
        right_records(w, "ab"[i])


@case("layer/{kind}/race/side_stream", kind=KINDS, ops=LAYER_OPS, layouts=LAYER_LAYOUTS, catches=("I6", "I2"))
def one_cache_on_changing_streams(s: Subject, kind: str) -> None:
    """Steps of one request on alternating streams, ordered by events alone."""
    s.need_device("a device with streams")
    w, at, outs = World(s, kind), 0, []
    streams: list[Any] = [new_stream(s.device) for _ in range(3)]
    done: Any = new_event(s.device)
    done.record()
    keep: list[Tensor] = []
    for round_, count in enumerate([125, *[1] * 8]):
        stream = streams[round_ % 3]
        with stream:
            stream.wait_event(done)
            delay(s.device)
            plan = w.cache.plan({"a": count})
            rows = text("a")[at : at + count].to(s.device)
            keep.append(rows)
            outs.append(w.attention(rows, w.cache, plan))
            done = new_event(s.device)
            done.record(stream)
        at += count
    torch.accelerator.synchronize()
    right_outputs(w, torch.cat([out.cpu() for out in outs]), 0)
    right_records(w, "a")
