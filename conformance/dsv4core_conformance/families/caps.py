"""CAPS: what is claimed runs, what is not claimed is refused in words, and nothing else is taken instead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dsv4core
from dsv4core import AttentionConfig, backends, get_backend
from dsv4core.errors import (
    BackendUnavailableError,
    ConfigError,
    DSV4CoreError,
    FallbackError,
    LayoutError,
    OpArgumentError,
)
from dsv4core.layout import get_layout, layouts
from dsv4core.ops import OpTable
from dsv4core.probe import probe
from dsv4core.registry import get_registry
from dsv4core.samples import sample
from dsv4core.spec import BackendSpec, Requirement
from dsv4core_conformance.case import case
from dsv4core_conformance.compare import Mismatch, require
from dsv4core_conformance.contracts import CONTRACTS
from dsv4core_conformance.families._layers import KINDS, LAYER_LAYOUTS, World
from dsv4core_conformance.reference.rows import INDEX, MAIN, ROTATED
from dsv4core_conformance.subject import LAYER_OPS, Subject


@case("suite/caps/backends", catches=("M2", "M4", "M7", "M9", "A17"))
def every_backend_answers(s: Subject) -> None:
    """Each known backend is available, or says why not and what to do; asking for it says the same."""
    names = [row.name for row in backends()]
    require(s.name in names, f"{s.name} is not among {names}")
    for row in get_registry().rows("device"):  # installed files alone may promise a device that is not there
        if row.available:
            if row.name == s.name:
                require(get_backend(row.name).name == row.name, f"{row.name} gave another backend")
            continue
        require(row.reason and row.code, f"{row.name} is not available and says nothing")
        try:
            get_backend(row.name)
        except BackendUnavailableError as error:
            require(row.name in str(error), f"the refusal of {row.name} does not name it: {error}")
        else:
            raise Mismatch(f"{row.name} is not available ({row.reason}) and was given nevertheless")


@case("suite/caps/unknown_backend", catches=("M9",))
def an_unknown_backend_is_refused(s: Subject) -> None:
    """A name that nobody has is refused with the names there are; nothing is taken in its place."""
    try:
        get_backend(s.name + "x")
    except DSV4CoreError as error:
        require(s.name in str(error), f"the refusal does not name {s.name}: {error}")
    else:
        raise Mismatch("an unknown backend was found")


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


@case("suite/caps/public_names", catches=("M11", "K15"))
def public_names_are_there(s: Subject) -> None:
    """The names that engines build on exist and can be imported."""
    for name in (
        "AttentionConfig", "AttentionWeights", "BatchPlan", "Limits", "PagedCache", "RequestExport",
        "backends", "cache_specs", "get_backend", "get_layout", "layouts", "use", "DeepseekV4Attention",
        "OpArgumentError",
    ):  # fmt: skip
        require(getattr(dsv4core, name, None) is not None, f"dsv4core.{name} is missing")
    for op in s.backend.ops.provenance:
        require(callable(getattr(s.backend.ops, op)), f"op {op} cannot be called")


ROWS = (
    "import json, dsv4core; "
    "print(json.dumps([[r.name, r.available, r.code.value, r.reason] for r in dsv4core.backends()]))"
)
BROKEN = {
    "no_torch": "import sys; sys.modules['torch'] = None; ",
    "broken_torch": "torch",
    "exiting_torch": "torch",
    "broken_triton": "triton",
    "broken_cutlass": "cutlass",
    "broken_aiter": "aiter",
    "broken_flash_mla": "flash_mla",
    "broken_ipex": "intel_extension_for_pytorch",
}


def _fresh(code: str, folder: str = "") -> list[list[Any]]:
    path = os.pathsep.join([folder, *sys.path]) if folder else os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    require(done.returncode == 0, f"a fresh process ended with {done.returncode}: {done.stderr[-600:]}")
    return json.loads(done.stdout.splitlines()[-1])


@case("suite/caps/fresh_{what}", what=BROKEN, catches=("M2", "M3", "M9", "B2"))
def a_broken_package_is_an_answer(s: Subject, what: str) -> None:
    """With torch or an optional package missing, raising or exiting on import every backend still answers."""
    plain = {row[0] for row in _fresh(ROWS)}
    if what == "no_torch":
        rows = _fresh(BROKEN[what] + ROWS)
        require(not any(row[1] for row in rows), f"available without torch: {rows}")
    else:
        with tempfile.TemporaryDirectory() as folder:
            body = (
                "raise SystemExit(127)"
                if what.startswith("exiting")
                else "raise RuntimeError('no libfoo.so')"
            )
            Path(folder, f"{BROKEN[what]}.py").write_text(f"__version__ = '9.9'\n{body}\n")
            rows = _fresh(ROWS, folder)
    require({row[0] for row in rows} == plain, f"backends are {[row[0] for row in rows]} instead of {plain}")
    for name, available, code, reason in rows:
        require(available or (code and reason), f"{name} is not available and says nothing")


@case("suite/caps/fresh_wrong_package", catches=("M3", "M9", "M2"))
def a_package_that_imports_is_no_device(s: Subject) -> None:
    """Packages of every vendor that merely import make no backend available that was not."""
    before = {row[0]: row[1] for row in _fresh(ROWS)}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cutlass", "aiter", "flash_mla", "intel_extension_for_pytorch"):
            Path(folder, f"{name}.py").write_text("__version__ = '99.0'\n")
        after = {row[0]: row[1] for row in _fresh(ROWS, folder)}
    require(after == before, f"with packages that only import: {after}, without them {before}")


@case("suite/caps/devices", catches=("M1", "M3", "M6", "M8"))
def a_tensor_elsewhere_is_refused(s: Subject) -> None:
    """Arguments on two devices are refused by name, before anything is launched."""
    arguments = {
        name: v.to(s.device) if isinstance(v, Tensor) else v for name, v in sample("inverse_rope").items()
    }
    arguments["cos_sin"] = arguments["cos_sin"].to("meta")
    try:
        s.backend.ops.inverse_rope(**arguments)
    except OpArgumentError as error:
        require("cos_sin" in str(error), f"the refusal does not name the argument: {error}")
    else:
        raise Mismatch("arguments on two devices were accepted")


@case("suite/caps/requirements", catches=("M2", "M3", "M9"))
def a_missing_package_is_named(s: Subject) -> None:
    """A backend whose package is missing or too old is not available, and its answer names the package."""
    for need in (Requirement("no_such_package_anywhere"), Requirement("torch", version=">=999")):
        spec = BackendSpec(
            name="nowhere", device_type="cpu", priority=1, factory="nowhere:Nothing", requires=(need,)
        )
        answer = probe(spec, "static")
        require(not answer.ok, f"available although {need.module} {need.version} is not here")
        require(need.module in answer.reason, f"{need.module} is not named in {answer.reason!r}")


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
