"""PAGEPERM: pages in any order, with anything in them, and never a byte that is not one's own."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from dsv4core import AttentionConfig, PagedCache, cache_specs
from dsv4core.plan import BatchPlan
from dsv4core_conformance.case import case
from dsv4core_conformance.compare import page_place, require
from dsv4core_conformance.families._layers import (
    KINDS,
    LAYER_LAYOUTS,
    STALE,
    World,
    cut,
    layer_of,
    raw_bytes,
    right_outputs,
    right_records,
    text,
    trace_of,
    weights_of,
)
from dsv4core_conformance.reference.counter import hashed_words
from dsv4core_conformance.reference.paged import record_parts
from dsv4core_conformance.subject import LAYER_OPS, Subject

U8 = NDArray[np.uint8]


def everything(w: World) -> dict[str, U8]:
    """A copy of every byte of every page. Shapes: u8 [N, bytes] by group"""
    return {group: raw_bytes(tensor).cpu().numpy().copy() for group, tensor in w.storages().items()}


def put(pages: U8, slots: NDArray[np.int64], records: U8, layout: str, width: int, rows: int) -> None:
    """Write records into pages as a layout lays them out. Shapes: u8 [N, B] (written), [n], u8 [n, record]"""
    values, tail = record_parts(layout, width)
    page, row = (slots // rows)[:, None], (slots % rows)[:, None]
    pages[page, row * values + np.arange(values)] = records[:, :values]
    pages[page, rows * values + row * tail + np.arange(tail)] = records[:, values:]


@case(
    "layer/{kind}/pageperm/own_tables",
    kind=KINDS,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    catches=("A8", "D2", "J5", "K9", "K15", "A6"),
)
def tables_of_an_engine(s: Subject, kind: str) -> None:
    """Two requests on an engine's pages in random order: exactly their rows are written, byte for byte."""
    w = World(s, kind, tokens=2048)
    names, done, total = ("a", "b"), {"a": 0, "b": 0}, 270
    free = {g: np.argsort(hashed_words(t.shape[0], 3)).astype(np.int32) for g, t in w.storages().items()}
    specs = w.cache.layer(w.layer).specs
    tables = {}
    for group, spec in specs.items():
        width = total // spec.tokens_per_row // spec.rows + 1
        tables[group] = torch.from_numpy(free[group][: 2 * width]).view(2, width)
    wanted = everything(w)
    for counts in ((130, 3), (1, 1), (5, 126), (1, 1), (1, 8), (130, 1)):
        rows = [text(n)[done[n] : done[n] + count] for n, count in zip(names, counts, strict=True)]
        done = {n: done[n] + count for n, count in zip(names, counts, strict=True)}
        plan = BatchPlan.build(
            w.config, query_lens=list(counts), seq_lens=list(done.values()), tables=tables, pad_to=300,
            device=s.device,
        )  # fmt: skip
        starts = {n: done[n] - count for n, count in zip(names, counts, strict=True)}
        for n, out in w.step(dict(zip(names, rows, strict=True)), plan=plan).items():
            right_outputs(w, out, starts[n], n)
    for place, n in enumerate(names):
        trace = trace_of(w, n, done[n])
        for group, spec in specs.items():
            row = np.arange(done[n] // spec.tokens_per_row)
            slots = (
                tables[group][place].numpy().astype(np.int64)[row // spec.rows] * spec.rows + row % spec.rows
            )
            put(wanted[group], slots, trace.caches[group][row], spec.layout, spec.row_width, spec.rows)
    for group, pages in everything(w).items():
        wrong = np.argwhere(pages != wanted[group])
        if len(wrong):
            page, byte = (int(i) for i in wrong[0])
            require(
                False,
                f"group {group}: byte {byte} of page {page}: expected {wanted[group][page, byte]:02x}, got "
                f"{pages[page, byte]:02x}; {len(wrong)} bytes differ",
            )


@case(
    "layer/{kind}/pageperm/recycled",
    kind=KINDS,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    catches=("D5", "K1", "K9", "E12"),
)
def pages_of_the_dead(s: Subject, kind: str) -> None:
    """Request after request on the pages that the last one left, short ones after long ones."""
    w = World(s, kind, tokens=320, requests=1)
    for request, chunks in (("x", [290]), ("y", [3, 1, 2]), ("z", [131, 4]), ("a", [1] * 9), ("b", [259, 1])):
        out = w.feed(request, chunks)
        right_records(w, request)
        right_outputs(w, out, 0, request)
        w.cache.free(request)


@case(
    "layer/{kind}/pageperm/drafts_stay_home",
    kind=KINDS,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    catches=("J5", "K9", "J2"),
)
def only_own_slots_change(s: Subject, kind: str) -> None:
    """A step changes the rows of its own tokens and no other byte, drafts and padding included."""
    w = World(s, kind, limits={"max_rollback": 16}, decode_threshold=8)
    w.step({"a": 126, "b": 250, "c": 5})
    specs = w.cache.layer(w.layer).specs
    for new, pad_to in (({"a": 8}, None), ({"c": 1, "a": 1}, 16), ({"b": 8, "a": 3}, 16), ({"b": 130}, 160)):
        before = everything(w)
        starts = {n: w.cache.length(n) for n in new}
        w.step(new, pad_to=pad_to)
        assert w.plan is not None
        for group, pages in everything(w).items():
            spec, allowed = specs[group], before[group].copy()
            slots = w.plan.slots[group].cpu().numpy()
            slots = slots[slots >= 0]
            values, tail = record_parts(spec.layout, spec.row_width)
            page, row = (slots // spec.rows)[:, None], (slots % spec.rows)[:, None]
            for columns in (
                row * values + np.arange(values),
                spec.rows * values + row * tail + np.arange(tail),
            ):
                allowed[page, columns] = pages[page, columns]
            wrong = np.argwhere(pages != allowed)
            where = (
                page_place(w.storages()[group], _at(w, group, wrong), spec.layout, spec.rows)
                if len(wrong)
                else ""
            )
            require(
                not len(wrong), f"group {group}: {len(wrong)} bytes of nobody changed, the first at {where}"
            )
        for n, start in starts.items():
            w.cache.truncate(n, max(start, w.cache.min_length(n)))


def _at(w: World, group: str, wrong: NDArray[np.int64]) -> int:
    tensor = w.storages()[group]
    size = tensor.element_size()
    page, byte = (int(i) for i in wrong[0])
    return tensor.storage_offset() * size + page * tensor.stride(0) * size + byte


@case(
    "layer/stack/pageperm/packed",
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    catches=("A7", "A8", "A9", "A11", "A12", "I9", "L11"),
)
def layers_share_an_allocation(s: Subject) -> None:
    """Five layers in columns of one wide allocation: each has its bytes, and the gaps between keep theirs."""
    config = AttentionConfig.preset("tiny", compress_ratios=(0, 4, 128, 4, 0))
    layers = range(5)
    specs = {spec.key: spec for layer in layers for spec in cache_specs(config, layer)}
    pages, gap, offset, columns = 80, 48, 16, {}
    for key, spec in specs.items():
        columns[key] = offset
        offset = -(-(offset + spec.page_bytes + gap) // 16) * 16
    whole = torch.full((pages, offset), STALE, dtype=torch.uint8, device=s.device)
    tensors = {key: whole[:, at : at + specs[key].page_bytes] for key, at in columns.items()}
    cache = PagedCache.from_tensors(config, tensors, max_requests=3, max_chunk=300)
    worlds = [_on(s, config, layer, cache) for layer in layers]
    for new in ({"a": 136, "b": 3}, {"b": 1, "a": 1}, {"a": 1, "b": 4}):
        plan, rows, outs = None, None, []
        starts = {n: cache.length(n) if n in cache.requests else 0 for n in new}
        rows = {n: worlds[0].next_rows(n, count) for n, count in new.items()}
        plan = cache.plan(new)
        outs = [w.step(dict(rows), plan=plan) for w in worlds]
        for w, out in zip(worlds, outs, strict=True):
            for n in new:
                right_outputs(w, out[n], starts[n], n)
    for w in worlds:
        for n in ("a", "b"):
            got = w.records(n)
            wanted = trace_of(w, n, cache.length(n)).records(cache.length(n))
            for group, (start, records) in wanted.items():
                require(
                    got[group][0] == start and np.array_equal(got[group][1], records),
                    f"layer {w.layer}, group {group} of request {n!r} does not hold its rows",
                )
    used = torch.zeros(offset, dtype=torch.bool)
    for key, at in columns.items():
        used[at : at + specs[key].page_bytes] = True
    require((whole.cpu()[:, ~used] == STALE).all(), "bytes between the layers' pages were written")
    require(weights_of(config, 1).wkv.ne(weights_of(config, 3).wkv).any(), "two layers have the same weights")


def _on(s: Subject, config: AttentionConfig, layer: int, cache: PagedCache) -> World:
    """A world of one layer on a cache of several."""
    w = World.__new__(World)
    ratio = config.compress_ratios[layer]
    w.s, w.config, w.layer, w.ratio, w.cache, w.plan = s, config, layer, ratio, cache, None
    w.kind = {0: "swa", 4: "csa", 128: "hca"}[ratio]
    w.attention = layer_of(s, config, layer)
    return w


@case(
    "layer/{kind}/pageperm/random_life",
    kind=KINDS,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    level="extended",
    catches=("K9", "E12"),
    limit=240,
)
def random_life(s: Subject, kind: str) -> None:
    """Requests come, grow by any number of tokens, shrink and leave on few pages; every one stays right."""
    w = World(s, kind, tokens=900, requests=5)
    words = iter(int(word >> np.uint64(8)) for word in hashed_words(4000, 9))
    for round_ in range(120):
        name = f"r{next(words) % 5}"
        held = name in w.cache.requests
        action = next(words) % 8
        if action == 0 and held:
            w.cache.free(name)
        elif action == 1 and held:
            length = w.cache.length(name)
            w.cache.truncate(name, max(w.cache.min_length(name), length - next(words) % 9))
        else:
            count = (1, 1, 3, 4, 9, 70)[next(words) % 6]
            room = 900 - w.cache.tokens
            if count <= room and (w.cache.length(name) if held else 0) + count < 600:
                start = w.cache.length(name) if held else 0
                right_outputs(w, w.step({name: count})[name], start, name)
        if round_ % 10 == 9:
            for request in w.cache.requests:
                right_records(w, str(request))
    require(cut(3, [2]) == [2, 1] and len(w.cache.requests) > 0, "the life ended early")
