"""Inputs of single ops: `make(op, **options)` gives the arguments of one call by name, on the host.

Options say what a case is about (layout, rows per page, slots, magnitudes, place in memory, seed, ...); what
they leave open has a small ordinary default. Every tensor has memory of its own.
"""

from __future__ import annotations

from typing import Any

from dsv4core_conformance.inputs.attending import MAKERS as ATTENDING
from dsv4core_conformance.inputs.caching import MAKERS as CACHING

MAKERS = {**CACHING, **ATTENDING}


def make(op: str, **options: Any) -> dict[str, Any]:
    """Arguments of a call of `op`. Raises KeyError for an unknown op, TypeError for an unknown option."""
    return MAKERS[op](**options)
