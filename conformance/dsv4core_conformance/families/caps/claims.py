"""Ops and layouts: what is claimed runs, what is not is refused, nothing stands in."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch

from dsv4core import AttentionConfig
from dsv4core.errors import (
    ConfigError,
    DSV4CoreError,
    FallbackError,
    LayoutError,
    OpArgumentError,
)
from dsv4core.layout import get_layout, layouts
from dsv4core.ops import OpTable
from dsv4core.samples import sample
from dsv4core_conformance.case import case
from dsv4core_conformance.compare import Mismatch, require
from dsv4core_conformance.contracts import CONTRACTS
from dsv4core_conformance.families._layers import KINDS, LAYER_LAYOUTS, World
from dsv4core_conformance.hosts import Moved
from dsv4core_conformance.reference.rows import INDEX, MAIN, ROTATED
from dsv4core_conformance.subject import LAYER_OPS, Subject


@case("suite/caps/provenance", ops=LAYER_OPS, layouts=LAYER_LAYOUTS, catches=("A14", "M2", "M10"))
def the_path_asked_is_the_path_taken(s: Subject) -> None:
    """Every op that whole layers call is bound to this backend, none to a body that stands in.

    Where the provider counts what it starts (`launches`), every op but a plain matmul starts something.
    """
    if hasattr(s.backend.provider, "launches"):
        for op in sorted(s.own_ops):
            before = s.backend.provider.launches
            s.call(op, sample(op))
            started = s.backend.provider.launches > before
            require(started or CONTRACTS[op].kind == "matmul", f"{op} started no kernel")
    for kind in KINDS:
        w = World(s, kind)
        table, called = w.attention.ops, set()

        class Recorder:
            """Notes which ops a layer takes."""

            def __getattr__(self, name: str, table: Any = table, called: set[str] = called) -> Any:
                called.add(name)
                return getattr(table, name)

        w.attention.ops = Recorder()  # type: ignore[assignment]
        try:
            w.feed("a", [131, 1])
        finally:
            w.attention.ops = table
        for name in called:
            source = s.backend.ops.provenance[name]
            require(
                source not in ("portable", "absent"),
                f"{kind}: {name} is {source} while {s.name} was asked for",
            )
            require(getattr(table, name).backend == s.name, f"{kind}: {name} runs on another backend")
        if kind == "csa":
            require("sparse_indexer" in called, "a ratio-4 layer left its sparse path")


@case(
    "layout/{which}/caps/answer",
    which=(*MAIN, *INDEX),
    level="layout",
    catches=("A4", "A5", "A15", "M1", "B2"),
)
def a_claimed_layout_runs(s: Subject, which: str) -> None:
    """A claimed layout is written; one that is not is refused with a documented error, or is right."""
    arguments = _writing(which)
    op = "quantize_and_insert_k_cache" if which in MAIN else "compress_norm_rope_store"
    if op not in s.own_ops and which not in s.layouts:
        return
    try:
        s.check(op, arguments)
    except DSV4CoreError as error:
        require(which not in s.layouts, f"{which} is claimed and {op} refuses it: {error}")


def _writing(which: str) -> dict[str, Any]:
    rows = 8
    if which in MAIN:
        found = sample("quantize_and_insert_k_cache")
        source = get_layout(which)
        dtype = torch.float32 if which == "f32_row" else torch.bfloat16
        k = found["k"].to(dtype)
        pages = torch.full((2, source.page_bytes(rows)), 0xA5, dtype=torch.uint8)
        slots = torch.arange(len(k)) * 2 + 1
        return {"k": k, "k_cache": pages, "slot_mapping": slots, "rows": rows, "layout": which}
    found = sample("compress_norm_rope_store")
    state = found["state_cache"][..., :512].contiguous()
    pages = torch.full((2, get_layout(which).page_bytes(rows)), 0xA5, dtype=torch.uint8)
    return {
        **found, "state_cache": state, "norm_weight": found["norm_weight"][:128].clone(), "k_cache": pages,
        "head_dim": 128, "rows": rows, "layout": which, "rotate": "hadamard" if which in ROTATED else "none",
    }  # fmt: skip


@case("suite/caps/resolve", catches=("A17", "A5", "M7"))
def layouts_resolve_for_every_input(s: Subject) -> None:
    """Profile, main and index layout and output format: a configuration, or a ConfigError that says which."""
    resolved = 0
    known = tuple(layout.id for layout in layouts())
    mains, indexes = ("", "auto", "fp8", *known), ("", "auto", *known)
    for profile, main, index, quant in product(
        ("vllm", "official", "sglang", "math", "auto", ""), mains, indexes, (None, "f32", "ue8m0x4", "fp8")
    ):
        try:
            config = AttentionConfig.preset(
                "tiny", profile=profile, main_layout=main, index_layout=index, output_quant=quant
            )
        except ConfigError as error:
            require(str(error), "a ConfigError without words")
            continue
        resolved += 1
        for name in (config.main_layout, config.index_layout):
            require(name in known, f"resolved to {name!r}, which is no layout")
    require(resolved >= 4, f"only {resolved} combinations resolve")


def _bad(s: Subject) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for op in ("quantize_and_insert_k_cache", "compress_norm_rope_store", "dequantize_and_gather_k_cache"):
        for layout in ("nonsense", "fp8_ds_mla_v9", "index_fp8" if op[0] in "qd" else "state_f32", ""):
            yield f"layout {layout!r}", op, {"layout": layout}
    yield "layout of the main cache", "sparse_indexer", {"layout": "fp8_ds_mla"}
    yield "another extra_layout", "sparse_decode", {"extra_layout": "nonsense"}
    yield "format 'int8'", "fused_indexer_q_rope_quant", {"format": "int8"}
    yield "rotate 'sideways'", "fused_indexer_q_rope_quant", {"rotate": "sideways"}
    yield "format 'int4'", "linear", {"format": "int4"}
    yield "scale_format 'f64'", "fused_inv_rope_fp8_quant", {"scale_format": "f64"}
    yield "slot_mapping of rank 2", "quantize_and_insert_k_cache", {"slot_mapping": torch.zeros(5, 1).long()}
    yield "slot_mapping i32", "quantize_and_insert_k_cache", {"slot_mapping": torch.zeros(5).int()}
    yield "k f64", "quantize_and_insert_k_cache", {"k": torch.zeros(5, 512).double()}
    yield "pages of rank 3", "quantize_and_insert_k_cache", {"k_cache": torch.zeros(2, 64, 584).byte()}
    yield "sink bf16", "sparse_decode", {"attn_sink": torch.zeros(4).bfloat16()}
    yield "positions i32", "inverse_rope", {"positions": torch.zeros(5).int()}


@case("suite/caps/refusals", catches=("M9", "D15", "A4", "A15", "A1", "B2", "C2"))
def what_does_not_exist_is_refused(s: Subject) -> None:
    """Unknown layouts, formats, dtypes and ranks raise the documented errors and name the op."""
    for what, op, wrong in _bad(s):
        if op not in s.own_ops:
            continue
        arguments = {**sample(op), **wrong}
        try:
            s.call(op, arguments)
        except (OpArgumentError, LayoutError) as error:
            require(
                op in str(error) or isinstance(error, LayoutError),
                f"{op} with {what}: {error} does not name it",
            )
        except Exception as error:
            raise Mismatch(f"{op} with {what} raised {type(error).__name__}: {error}") from error
        else:
            raise Mismatch(f"{op} accepted {what}")


@case("suite/caps/devices", catches=("M1", "M3", "M6", "M8"))
def a_tensor_elsewhere_is_refused(s: Subject) -> None:
    """Arguments on two devices are refused by name, before anything is launched."""
    arguments = Moved(sample("inverse_rope"), s.device).arguments
    arguments["cos_sin"] = arguments["cos_sin"].to("meta")
    try:
        s.backend.ops.inverse_rope(**arguments)
    except OpArgumentError as error:
        require("cos_sin" in str(error), f"the refusal does not name the argument: {error}")
    else:
        raise Mismatch("arguments on two devices were accepted")


@case("suite/caps/no_silent_fallback", catches=("A14", "M2", "M10"))
def a_missing_op_is_not_filled_in(s: Subject) -> None:
    """Where fallbacks are forbidden an op that a backend lacks is absent and refuses, and never its own."""
    table = OpTable("partial", {"linear": s.backend.ops.linear.implementation}, "error")
    arguments = sample("inverse_rope")
    try:
        table.inverse_rope(**arguments)
    except FallbackError as error:
        require("inverse_rope" in str(error), f"the refusal does not name the op: {error}")
    else:
        raise Mismatch("an op that the backend lacks was called nevertheless")
    for mode, word in (("error", "absent"), ("allow", "portable")):
        source = OpTable("partial", {"linear": s.backend.ops.linear.implementation}, mode).provenance
        require(source["inverse_rope"] == word, f"a missing op is {source['inverse_rope']}, expected {word}")
        require(source["linear"] == "partial", f"an own op is {source['linear']}, expected partial")
