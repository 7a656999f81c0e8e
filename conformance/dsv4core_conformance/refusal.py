"""Calls that must be refused: an error that says so, and not one byte written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dsv4core.errors import DSV4CoreError
from dsv4core_conformance.compare import Mismatch, same_storage
from dsv4core_conformance.hosts import cloned, storage_bytes
from dsv4core_conformance.subject import Subject

REFUSALS = (DSV4CoreError, ValueError, TypeError)


def refused(s: Subject, op: str, arguments: Mapping[str, Any], what: str) -> None:
    """The call raises one of the errors for callers' mistakes; raises `Mismatch` if it runs or writes."""
    before = cloned(arguments)
    try:
        s.call(op, arguments)
    except REFUSALS:
        _unchanged(op, before, arguments)
        return
    raise Mismatch(f"{op}: {what} was accepted; it must be an error")


def refused_or_right(s: Subject, op: str, arguments: Mapping[str, Any]) -> None:
    """The call is refused without a byte written, or gives the right result."""
    before = cloned(arguments)
    try:
        s.check(op, arguments)
    except REFUSALS:
        _unchanged(op, before, arguments)


def _unchanged(op: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    for name, value in before.items():
        if isinstance(value, Tensor):
            same_storage(f"{op} refused, yet {name} changed", after[name], storage_bytes(value).numpy())
