"""Look for what a backend needs without importing it; torch only when a probe of depth ``device`` asks.

Importable is not usable, and installed is not importable: each step has its own answer.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

from dsv4core.spec import Availability, BackendSpec, Code, Depth, Requirement

AVAILABLE = Availability.available()
"""The answer when nothing stands in the way and there is nothing to add."""

TRITONS = ("triton", "triton-rocm", "pytorch-triton-rocm", "triton-xpu", "pytorch-triton-xpu")
"""Distributions that bring the module triton."""

OLDEST_TRITON = ">=3.5"
"""The first whose compiler takes functions that call themselves, as the sums of pooling do; of torch 2.9."""

_FIELD = re.compile(r"^(Name|Version):[ \t]*(\S+)", re.MULTILINE | re.IGNORECASE)

NO_OPS_HINT = "`dsv4core info` lists the backends that can run"
"""What to do about a backend without ops."""


def probe(spec: BackendSpec, depth: Depth) -> Availability:
    """Answer for a backend that has no probe of its own: are its requirements met, does it have ops.

    At depth ``device`` torch is imported, because a torch that is installed and broken cannot run anything.
    """
    found = unmet(spec)
    if found is not None:
        return found
    if depth == "device" and any(need.module == "torch" for need in spec.requires):
        torch = import_torch()
        if isinstance(torch, Availability):
            return torch
    if not spec.factory:  # no device could make it run
        reason = f"this release ships no ops for {spec.name} yet"
        return Availability.missing(Code.NO_OPS, reason, NO_OPS_HINT)
    return AVAILABLE


def probe_kernels(
    spec: BackendSpec,
    depth: Depth,
    installed: Callable[[], Availability],
    look: Callable[[Any], Availability],
    triton: str,
) -> Availability:
    """Answer for a backend of Triton kernels: its requirements, where it would run, then triton.

    It runs in the interpreter, else on what ``installed()`` reads from files at depth ``static`` and
    ``look(torch)`` finds at depth ``device``, which counts devices and makes no context on any. ``triton``
    says what to do where triton, which is not imported, is not installed.
    """
    found = unmet(spec)
    if found is not None:
        return found
    found = _interpreter()
    if found is None:
        torch = None if depth == "static" else import_torch()
        found = installed() if torch is None else torch if isinstance(torch, Availability) else look(torch)
    if not found.ok:
        return found
    if not module_exists("triton"):
        reason = f"{found.reason}, but module 'triton' is not installed"
        return Availability.missing(Code.NOT_INSTALLED, reason, triton, found.device)
    versions = ((name, version) for name in TRITONS if (version := installed_version(name)))
    for name, version in versions:
        if not _satisfies(version, OLDEST_TRITON):
            reason = f"{found.reason}, but {name} {version} is installed, {OLDEST_TRITON} is needed"
            hint = "torch 2.9 and later bring it: install that from the same index"
            return Availability.missing(Code.VERSION_CONFLICT, reason, hint, found.device)
    return found


def other_build(torch: Any, kind: str, hint: str = "", device: str = "") -> Availability:
    """Answer that torch was built for something else: ``kind`` is such as "a CUDA build"."""
    return Availability.missing(Code.NO_DEVICE, f"torch {torch.__version__} is {kind}", hint, device)


def counted(torch: Any, count: int, build: tuple[str, str], hint: str = "", device: str = "") -> Availability:
    """Answer with the number of devices that torch sees.

    ``build`` is what torch was built for and its version, such as ("CUDA", "13.0"); ``hint`` and ``device``
    (a driver that is there all the same) are for a count of zero.
    """
    kind, version = build
    if count == 0:
        reason = f"torch {torch.__version__} ({kind} {version}) sees no device"
        return Availability.missing(Code.NO_DEVICE, reason, hint, device)
    devices = f"{count} {kind} device{'s' if count > 1 else ''}"
    return Availability.available(f"torch {torch.__version__} sees {devices}", devices)


def unmet(spec: BackendSpec) -> Availability | None:
    """Return why a requirement of ``spec`` is not met, or None when all are; imports none of them."""
    for need in spec.requires:
        found = _unmet(spec, need)
        if found is not None:
            return found
    return None


def interpreted() -> bool:
    """Say whether Triton kernels of this process run in its interpreter, on host tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _interpreter() -> Availability | None:
    """Answer for a backend of Triton kernels in an interpreted process, which needs no device; else None."""
    if not interpreted():
        return None
    reason = "kernels run in Triton's interpreter on the CPU (TRITON_INTERPRET=1): slow"
    return Availability.available(reason, by_name=True)


def import_torch() -> ModuleType | Availability:
    """Import torch, or return the reason why that fails."""
    try:
        return importlib.import_module("torch")
    except Exception as error:  # a broken build raises anything from OSError to RuntimeError
        reason = f"torch is installed, but importing it fails: {describe(error)}"
        return Availability.missing(
            Code.IMPORT_FAILED, reason, "reinstall torch: python -m pip install --force-reinstall torch"
        )


def module_exists(name: str) -> bool:
    """Say whether a top-level module could be found, without importing it."""
    if name in sys.modules:
        return sys.modules[name] is not None  # pyright: ignore[reportUnnecessaryComparison]
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


@cache
def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None; read once until `registry.refresh`.

    Reading takes a millisecond, and every backend asks for torch's.
    """
    try:
        return identity(importlib.metadata.distribution(distribution))[1] or None
    except importlib.metadata.PackageNotFoundError:
        return None


def identity(distribution: importlib.metadata.Distribution) -> tuple[str, str]:
    """Return a distribution's name and version, empty where nothing readable says them.

    They are read off the head of its metadata: ``distribution.metadata`` imports a mail parser for them and
    parses the README behind them too, a tenth of what discovery costs. Of two lines the first counts.
    """
    for file in ("METADATA", "PKG-INFO", ""):  # where the standard library looks
        try:
            text = distribution.read_text(file)
        except (UnicodeError, OSError):  # one distribution's bytes, and every backend is asked for
            continue
        if text:
            found = reversed(_FIELD.findall(text.partition("\n\n")[0]))
            fields = {name.lower(): value for name, value in found}
            return fields.get("name", ""), fields.get("version", "")
    return "", ""


def describe(error: BaseException) -> str:
    """Return an exception as one line: its type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _unmet(spec: BackendSpec, need: Requirement) -> Availability | None:
    distribution = need.distribution or need.module
    extra = f"[{spec.extra}]" if spec.extra else ""
    hint = need.hint or f'python -m pip install "dsv4core{extra}"'
    if not module_exists(need.module):
        return Availability.missing(Code.NOT_INSTALLED, f"module '{need.module}' is not installed", hint)
    if not need.version:
        return None
    version = installed_version(distribution)
    if version is None:
        return None  # a module on the path without metadata, as in a source checkout: nothing to compare
    if _satisfies(version, need.version):
        return None
    reason = f"{distribution} {version} is installed, {need.version} is needed"
    return Availability.missing(Code.VERSION_CONFLICT, reason, hint)


def _satisfies(version: str, specifier: str) -> bool:
    """Say whether a version meets a specifier; the plain case of a later release needs no parser.

    ``packaging`` takes a tenth of the time that discovery may take, and almost every answer is the plain one.
    """
    asked = re.fullmatch(r">=\s*(\d+(?:\.\d+)*)", specifier)
    here = re.match(r"\d+(?:\.\d+)*", version)
    if asked and here:
        wanted, have = (tuple(map(int, text.split("."))) for text in (asked[1], here[0]))
        if have[: len(wanted)] > wanted:
            return True
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(specifier).contains(version, prereleases=True)
