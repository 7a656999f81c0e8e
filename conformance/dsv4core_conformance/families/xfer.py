"""XFER: a request leaves one cache and goes on in another, of other pages, layers, machine or backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dsv4core import AttentionConfig, PagedCache, RequestExport, cache_specs
from dsv4core.errors import CacheError, DSV4CoreError
from dsv4core_conformance.case import NotRun, case
from dsv4core_conformance.compare import Mismatch, require
from dsv4core_conformance.families._layers import (
    KINDS,
    LAYER_LAYOUTS,
    STALE,
    World,
    right_outputs,
    right_records,
    same_rows,
    text,
)
from dsv4core_conformance.subject import LAYER_OPS, Subject, others

GEOMETRIES: tuple[dict[str, Any], ...] = (
    {"name": "small_pages", "rows": {
        "swa": 16, "c4": 6, "indexer": 10, "state_c4": 3, "state_indexer": 8, "c128": 1, "state_c128": 4,
    }},
    {"name": "large_pages", "rows": {
        "swa": 256, "c4": 128, "indexer": 96, "state_c4": 16, "state_indexer": 4, "c128": 3, "state_c128": 64,
    }},
)  # fmt: skip


def moved(source: World, target: World, length: int | None = None) -> None:
    """Request "a" of one world becomes request "a" of the other, as bytes."""
    target.cache.import_(RequestExport.from_bytes(source.cache.export("a", length=length).to_bytes()), "a")


def carries_on(target: World) -> None:
    """The imported request is right, and goes on right."""
    right_records(target, "a")
    for count in (1, 4, 1):
        start = target.cache.length("a")
        right_outputs(target, target.feed("a", [count]), start)
    right_records(target, "a")


def rows_of(w_kind: str, rows: Mapping[str, int]) -> dict[str, int]:
    """Those rows per page that a layer of a kind has groups for."""
    groups = {
        "swa": ("swa",),
        "csa": ("c4", "indexer", "state_c4", "state_indexer"),
        "hca": ("c128", "state_c128"),
    }
    return {g: n for g, n in rows.items() if g in (*groups[w_kind], "swa")}


@case(
    "layer/{kind}/xfer/{pages}",
    kind=KINDS,
    pages=GEOMETRIES,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    catches=("K12", "A11", "A12", "K15"),
)
def other_pages(s: Subject, kind: str, rows: dict[str, int]) -> None:
    """Into pages of another size and back, at odd and even lengths; decode goes on in each."""
    there = World(s, kind, limits={"rows": rows_of(kind, rows)})
    here = World(s, kind)
    there.feed("x", [77])
    here.feed("a", [131])
    moved(here, there)
    carries_on(there)
    back = World(s, kind)
    moved(there, back)
    carries_on(back)


@case(
    "layer/{kind}/xfer/other_limits", kind=KINDS, ops=LAYER_OPS, layouts=LAYER_LAYOUTS, catches=("K12", "J1")
)
def other_limits(s: Subject, kind: str) -> None:
    """From a cache that keeps 2 tokens back to one that keeps 8 and back, at an odd and an even prefix."""
    for length in (129, 130):
        two, eight = (World(s, kind, limits={"max_rollback": n}, decode_threshold=8) for n in (2, 8))
        two.feed("a", [length + 1])
        moved(two, eight, length)
        carries_on(eight)
        eight.step({"a": torch.cat([eight.next_rows("a", 3), text("draft")[:5]])})
        eight.cache.truncate("a", length + 9)
        right_records(eight, "a")
        again = World(s, kind, limits={"max_rollback": 2})
        moved(eight, again)
        carries_on(again)


@case(
    "layer/csa/xfer/index_{layout}",
    layout=("index_mxfp4", "index_mxfp4_hadamard", "index_fp8_hadamard_f32", "index_fp8_ue8m0x4"),
    ops=LAYER_OPS,
    layouts=("fp8_ds_mla", "state_f32"),
    catches=("K10", "A16"),
)
def other_index_layouts(s: Subject, layout: str) -> None:
    """Index keys of every format travel, into other pages too."""
    here = World(s, "csa", index_layout=layout)
    there = World(s, "csa", index_layout=layout, limits={"rows": {"indexer": 10}})
    here.feed("a", [140])
    moved(here, there)
    carries_on(there)


@case(
    "layer/{kind}/xfer/strided",
    kind=KINDS,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    catches=("A11", "A12", "A8"),
)
def strided_storage(s: Subject, kind: str) -> None:
    """Out of and into pages that are columns of a wide allocation with an offset of its own per cache."""
    here, there = _packed(s, kind, 96), _packed(s, kind, 160)
    here.feed("x", [70])
    here.feed("a", [260])
    moved(here, there)
    carries_on(there)


def _packed(s: Subject, kind: str, gap: int) -> World:
    w = World(s, kind)
    specs = cache_specs(w.config, w.layer)
    width = sum(spec.page_bytes + gap for spec in specs)
    whole = torch.full((128, -(-width // 16) * 16), STALE, dtype=torch.uint8, device=s.device)
    tensors: dict[str, Tensor] = {}
    at = gap
    for spec in specs:
        tensors[spec.key] = whole[:, at : at + spec.page_bytes]
        at += -(-(spec.page_bytes + gap // 2) // 16) * 16
    w.cache = PagedCache.from_tensors(w.config, tensors, max_requests=4, max_chunk=300)
    return w


@case("layer/stack/xfer/all_groups", ops=LAYER_OPS, layouts=LAYER_LAYOUTS, catches=("A13", "K12", "K13"))
def all_groups_of_several_layers(s: Subject) -> None:
    """Every group of three layers in one export; a cache with one of the layers takes its part."""
    config = AttentionConfig.preset("tiny")
    cache = PagedCache.allocate(config, range(3), 1024, s.device, max_requests=4)
    worlds = [World(s, kind) for kind in KINDS]
    for w in worlds:
        w.cache = cache
    rows = text("a")[:137]
    plan = cache.plan({"a": 137})
    for w in worlds:
        right_outputs(w, w.step({"a": rows}, plan=plan)["a"], 0)
    export = cache.export("a")
    wanted = {spec.key for layer in range(3) for spec in cache_specs(config, layer)}
    require({blob.key for blob in export.header.blobs} == wanted, "an export lacks groups of its layers")
    for kind in KINDS:
        part = World(s, kind, limits={"rows": {"swa": 16}})
        part.cache.import_(export, "a")
        carries_on(part)


def _refused(what: str, call: Any) -> None:
    try:
        call()
    except DSV4CoreError:
        return
    raise Mismatch(f"{what} was accepted")


@case("layer/csa/xfer/refused", ops=LAYER_OPS, layouts=LAYER_LAYOUTS, catches=("A15", "A16", "A4", "K13"))
def what_does_not_fit_is_refused(s: Subject) -> None:
    """Another profile, layout, fingerprint or length, and bytes that changed: refused, nothing written."""
    here = World(s, "csa")
    here.feed("a", [140])
    export = here.cache.export("a")
    data = export.to_bytes()
    for overrides in (
        {"profile": "sglang"}, {"profile": "official"}, {"index_layout": "index_mxfp4"},
        {"index_layout": "index_fp8_ue8m0x4"}, {"main_layout": "bf16_row"}, {"rope_theta": 10001.0},
        {"sliding_window": 64}, {"rms_norm_eps": 1e-20},
    ):  # fmt: skip
        there = World(s, "csa", **overrides)
        _refused(f"an import with {overrides}", lambda there=there: there.cache.import_(export, "a"))
        require(not there.cache.requests, f"a refused import with {overrides} left a request")
        for group, tensor in there.storages().items():
            require((tensor.view(torch.uint8) == STALE).all(), f"a refused import wrote into {group}")
    for at in (0, 9, 40, len(data) // 2, len(data) - 1):
        changed = bytearray(data)
        changed[at] ^= 1
        _refused(f"an export whose byte {at} changed", lambda c=changed: RequestExport.from_bytes(bytes(c)))
    for cut in (0, 10, len(data) - 1):
        _refused(f"an export cut to {cut} bytes", lambda n=cut: RequestExport.from_bytes(data[:n]))
    blob = export.header.blobs[0]
    forged = export.header.to_json().replace(blob.fingerprint.encode(), b"0123456789ab")
    _refused("an unknown fingerprint", lambda: type(export.header).from_json(forged))
    pages = {key: page.clone() for key, page in export.pages.items()}
    next(iter(pages.values()))[0, 5] += 1
    there = World(s, "csa")
    _refused(
        "pages that lost their checksum",
        lambda: there.cache.import_(RequestExport(export.header, pages), "a"),
    )
    there.cache.import_(export, "a")
    carries_on(there)
    try:
        there.cache.import_(export, "a")
    except CacheError:
        return
    raise Mismatch("an id that is held was imported again")


@case(
    "layer/{kind}/xfer/direct_read",
    kind=KINDS,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    needs=("batch_invariant_linear",),
    catches=("K11", "K16"),
)
def a_round_trip_changes_no_bit(s: Subject, kind: str) -> None:
    """A request that was out and back decodes with the bits of the one that never left."""
    w = World(s, kind)
    w.feed("a", [141])
    w.cache.import_(w.cache.export("a"), "b")
    for _ in range(5):
        start = w.cache.length("a")
        rows = text("a")[start : start + 1]
        out = w.step({"a": rows, "b": rows})
        same_rows("out and back against resident", out["b"], out["a"])


@case(
    "layer/{kind}/xfer/other_backend",
    kind=KINDS,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    catches=("K12", "K13", "A15", "A5"),
)
def between_backends(s: Subject, kind: str) -> None:
    """To every other backend that runs here and back, decoding on each."""
    peers = others(s.name)
    if not peers:
        raise NotRun(f"no other backend than {s.name} can run here")
    here = World(s, kind)
    here.feed("a", [131])
    for peer in peers:
        there = World(peer, kind)
        moved(here, there)
        carries_on(there)
        here = World(s, kind)
        moved(there, here)
        carries_on(here)
