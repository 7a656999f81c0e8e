"""The ops of the contract on the native library; what a kernel does not cover goes to the torch body."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dsv4core_cpu.native import Native
from dsv4core_cpu.ops import attention, entries, indexer, lists, writers

Table = dict[str, Callable[..., Any]]


def native_ops(native: Native) -> Table:
    """Every op the library has, by name."""
    table: Table = {}
    for module in (attention, entries, indexer, lists, writers):
        table.update(module.ops(native.library))
    return table
