"""aiter's entry points: found without importing, loaded where a device is, held against what was read."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from dsv4core.probe import describe, module_exists

log = logging.getLogger("dsv4core")

ENTRIES = {
    "pa_decode_sparse": "aiter.ops.triton.attention.pa_decode_sparse",
    "pa_sparse_prefill_opus": "aiter.ops.pa_sparse_prefill_opus",
    "fp8_mqa_logits": "aiter.ops.triton.attention.fp8_mqa_logits",
    "top_k_per_row_prefill": "aiter.ops.topk",
}
"""Functions that the providers call, and the modules they are in."""


@dataclass(frozen=True)
class Loaded:
    """What could be loaded: functions by name, and for the others why not."""

    functions: Mapping[str, Callable[..., Any]]
    missing: Mapping[str, str] = field(default_factory=dict[str, str])
    fake: bool = False

    def why_not(self, name: str) -> str:
        """Why an entry point is not there, or "" if it is."""
        return "" if name in self.functions else self.missing.get(name, "aiter is not installed")


def recorded(name: str = "signatures") -> dict[str, Any]:
    """A recorded JSON: `signatures` by entry point, or `conventions` by id."""
    return json.loads(files(__package__).joinpath(f"{name}.json").read_text())


def load() -> Loaded:
    """Import the entry points, each on its own; one that fails or has another signature is left out.

    For a process that has its device: aiter asks the driver for the architecture when it is imported.
    """
    if not module_exists("aiter"):
        return Loaded({})
    known = recorded()["entries"]
    functions: dict[str, Callable[..., Any]] = {}
    missing: dict[str, str] = {}
    for name, module in ENTRIES.items():
        try:
            function = getattr(importlib.import_module(module), name)
        except (Exception, SystemExit) as error:  # RuntimeError without ROCm, OSError, AttributeError, ...
            missing[name] = f"importing {module} fails: {describe(error)}"
            continue
        here = parameters(function)
        if here != known[name]["parameters"]:
            missing[name] = f"it takes {here}, the adapter was written for {known[name]['parameters']}"
        else:
            functions[name] = function
    for name, reason in missing.items():
        log.warning("rocm: aiter's %s is not used: %s", name, reason)
    fake = bool(functions) and getattr(importlib.import_module("aiter"), "FAKE", False)
    return Loaded(functions, missing, fake)


def parameters(function: Callable[..., Any]) -> str:
    """The parameters of a function without annotations, as `(a, b=None, *, c)`."""
    signature = inspect.signature(function)
    plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=signature.empty))
