"""The backend that mutants live in: the portable bodies under a name of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from dsv4core.backend import Backend
from dsv4core.ops import OPS, OpImpl
from dsv4core.registry import get_registry
from dsv4core_conformance.subject import PORTABLE_BODIES, Subject

NAME = "cpu"

_alive: list[Backend] = []  # cases remember layers by their backend, so none may take another's address


class Bodies:
    """A provider whose ops are the portable bodies, or others where given: nothing native hides a fault."""

    device_type = "cpu"

    def __init__(self, provider: str, others: Mapping[str, Any] | None = None) -> None:
        self.name = NAME
        self.ops = {op: OpImpl(declared.body, provider) for op, declared in OPS.items()}
        self.ops |= {op: OpImpl(function, provider) for op, function in (others or {}).items()}


def portable_subject(provider: str = "mutant", others: Mapping[str, Any] | None = None) -> Subject:
    """A subject on the portable bodies, under the name and with the claims of the backend `cpu`.

    Cases ask the registry about the backend under test, so it has no name of its own; `provider` is in the
    provenance of its ops. `others` replaces single ops, by name.
    """
    claims = get_registry().specs[NAME]
    spec = replace(claims, features=claims.features | {PORTABLE_BODIES})
    bodies = Bodies(provider, others)
    backend = Backend(spec, bodies, bodies.ops)
    _alive.append(backend)
    return Subject(backend, torch.device("cpu"), "device", spec.features, frozenset(spec.layouts))
