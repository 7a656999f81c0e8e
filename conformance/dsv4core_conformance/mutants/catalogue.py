"""All mutants, by theme."""

from __future__ import annotations

from dsv4core_conformance.mutants import (
    approximate,
    cache,
    compressor,
    dispatch,
    encoding,
    layout,
    overflow,
    padding,
    rope,
    sinks,
    topk,
)
from dsv4core_conformance.mutants.engine import Mutant

MUTANTS: dict[str, Mutant] = {
    mutant.name: mutant
    for theme in (
        layout,
        encoding,
        sinks,
        padding,
        compressor,
        rope,
        overflow,
        cache,
        topk,
        dispatch,
        approximate,
    )
    for mutant in theme.MUTANTS
}
"""Every mutant by name."""
