"""Backends and packages: each is there, or says why not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import dsv4core
from dsv4core import backends, get_backend
from dsv4core.errors import (
    BackendUnavailableError,
    DSV4CoreError,
)
from dsv4core.probe import probe
from dsv4core.registry import get_registry
from dsv4core.spec import BackendSpec, Requirement
from dsv4core_conformance.case import case
from dsv4core_conformance.compare import Mismatch, require
from dsv4core_conformance.subject import Subject


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
