"""PREDEC: a decoded token is the prefilled one, wherever windows, pages, entries and the top-k end."""

from __future__ import annotations

from typing import Any

import torch

from dsv4core_conformance.case import case
from dsv4core_conformance.compare import require
from dsv4core_conformance.families._layers import (
    KINDS,
    LAYER_LAYOUTS,
    World,
    close_rows,
    right_outputs,
    right_records,
    same_rows,
    text,
    trace_of,
)
from dsv4core_conformance.subject import LAYER_OPS, Subject

PLACES: tuple[dict[str, Any], ...] = (
    {"name": "first", "start": 0, "stop": 27},  # entries 0..5, of which a top-k of 4 takes 4
    {"name": "page", "start": 58, "stop": 70},
    {"name": "window", "start": 120, "stop": 136},
    {"name": "entry_page", "start": 250, "stop": 262},  # 64 entries of ratio 4, 2 of ratio 128
)


@case(
    "layer/{kind}/predec/{place}",
    kind=KINDS,
    place=PLACES,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    catches=("A1", "A2", "E2", "E3", "F4", "L10"),
)
def decode_is_prefill(s: Subject, kind: str, start: int, stop: int) -> None:
    """Tokens decoded one by one equal the rows of one prefill and the model, and leave its bytes."""
    w, whole = World(s, kind), World(s, kind)
    if start:
        w.feed("a", [start])
    out = w.feed("a", [1] * (stop - start))
    once = whole.feed("a", [stop])[start:]
    close_rows(s, "decode against prefill", out, once, trace_of(w, "a", stop).sure[start:stop])
    right_outputs(w, out, start)
    right_records(w, "a")


@case("layer/{kind}/predec/future", kind=KINDS, ops=LAYER_OPS, layouts=LAYER_LAYOUTS, catches=("E9", "E6"))
def the_future_is_invisible(s: Subject, kind: str) -> None:
    """Other tokens behind position p change no bit of the outputs up to p, and do change p + 1."""
    rows = text("a")[:270]
    plain = World(s, kind).step({"a": rows})["a"]
    for p in (2, 3, 7, 18, 126, 127, 130, 255):
        other = rows.clone()
        other[p + 1 :] *= -1
        out = World(s, kind).step({"a": other})["a"]
        same_rows(f"tokens behind position {p} negated", out[: p + 1], plain[: p + 1])
        require((out[p + 1] != plain[p + 1]).any(), f"position {p + 1} does not depend on its own token")


@case(
    "layer/{kind}/predec/steps_of_{count}",
    kind=KINDS,
    count=(2, 5, 8),
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    catches=("E6", "J6", "J2"),
)
def steps_of_several(s: Subject, kind: str, count: int) -> None:
    """Several tokens a step, as decode rows and as prefill rows, with fewer picks than candidates.

    A window that one token of the step completes is seen by the next and by none before it.
    """
    rows = text("a")
    for threshold in (1, 8):
        w = World(s, kind, decode_threshold=threshold, index_topk=2)
        out = w.feed("a", [9, *[count] * 5, 114, *[count] * 5])
        right_outputs(w, out, 0)
        right_records(w, "a")
        start = w.cache.length("a")
        plain = w.step({"a": count})["a"]
        for changed in range(1, count):
            w.cache.truncate("a", start)
            other = rows[start : start + count].clone()
            other[changed:] *= -1
            got = w.step({"a": other})["a"]
            same_rows(
                f"token {changed} of the step and those behind it negated", got[:changed], plain[:changed]
            )


@case(
    "layer/{kind}/predec/steps_of_{count}",
    kind=KINDS,
    count=(3, 4, 6, 7),
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    level="extended",
    catches=("E6", "J6", "J2"),
)
def more_steps_of_several(s: Subject, kind: str, count: int) -> None:
    """The widths in between, where windows fall differently."""
    steps_of_several(s, kind, count)


@case("layer/hca/predec/past_top_k", ops=LAYER_OPS, layouts=LAYER_LAYOUTS, catches=("E7", "K7"))
def entries_of_128_have_no_budget(s: Subject) -> None:
    """More than top-k entries of ratio 128: all are attended to, the newest first of all."""
    w = World(s, "hca", tokens=1200)
    w.feed("a", [760])
    right_outputs(w, w.feed("a", [1] * 12), 760)
    right_records(w, "a")


@case(
    "layer/{kind}/predec/draft_layer",
    kind=KINDS,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    catches=("F1", "F8", "A9"),
)
def a_draft_layer_has_its_own_ratio(s: Subject, kind: str) -> None:
    """The last entry of the schedule, which a draft layer has, decides its rotation, caches and windows."""
    ratio = {"swa": 0, "csa": 4, "hca": 128}[kind]
    w = World(s, kind, layer=3, compress_ratios=(128 if ratio != 128 else 4, 4, 0, ratio))
    out = w.feed("a", [131, 1, 1, 4])
    right_outputs(w, out, 0)
    right_records(w, "a")


@case(
    "layer/{kind}/predec/ladder",
    kind=KINDS,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    level="extended",
    catches=("L10", "A1", "L1"),
    limit=240,
)
def ladder(s: Subject, kind: str) -> None:
    """Decode at 64, 128, ... 1,024 tokens of one growing request."""
    w, at = World(s, kind, tokens=2048), 0
    for length in (64, 67, 128, 131, 256, 300, 511, 514, 1024):
        w.feed("a", [length - at])
        right_outputs(w, w.feed("a", [1, 1]), length)
        at = length + 2
    right_records(w, "a")


MODELS: tuple[dict[str, Any], ...] = (
    {"name": "profile_official", "layout": "index_mxfp4_hadamard", "options": {"profile": "official"}},
    {"name": "profile_sglang", "layout": "index_fp8_hadamard_f32", "options": {"profile": "sglang"}},
    {"name": "index_mxfp4", "layout": "index_mxfp4", "options": {"index_layout": "index_mxfp4"}},
    {"name": "bf16_row", "layout": "bf16_row", "options": {"main_layout": "bf16_row"}},
    {"name": "fp8_row", "layout": "fp8_row", "options": {"main_layout": "fp8_row"}},
)


@case(
    "layer/csa/predec/{model}",
    model=MODELS,
    ops=LAYER_OPS,
    layouts=("state_f32",),
    catches=("A15", "B1", "A5"),
)
def other_layouts(s: Subject, layout: str, options: dict[str, str]) -> None:
    """Layers with other rows and index keys: bytes, selections and outputs of prefill and decode."""
    w = World(s, "csa", **options)
    out = torch.cat([w.feed("a", [140]), w.feed("a", [1] * 12)])
    specs = w.cache.layer(w.layer).specs.values()
    require(layout in {spec.layout for spec in specs}, f"no cache of this layer is {layout}")
    right_records(w, "a")
    right_outputs(w, out, 0)
