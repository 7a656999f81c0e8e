"""What a run leaves behind: its rows as CSV, with the machine and the command beside every figure."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from dsv4core.bench.measure import Row
from dsv4core.errors import ConfigError

COLUMNS = tuple(field.name for field in fields(Row))
ABOUT = ("clock", "threads", "load", "copy_gb_s", "gemm_gflop_s", "machine", "command")
DIGITS = 4


def write_csv(path: Path, rows: Sequence[Row], about: Mapping[str, Any]) -> None:
    """One line per row; the last columns say on what machine, in what state and how, and repeat."""
    said = described(about)
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow((*COLUMNS, *ABOUT))
            for row in rows:
                facts = " ".join(f"{name}={number}" for name, number in row.facts.items())
                cells = (facts if name == "facts" else _cell(getattr(row, name)) for name in COLUMNS)
                writer.writerow((*cells, *(said[name] for name in ABOUT)))
    except OSError as error:
        raise ConfigError(f"--csv {path} cannot be written: {error}") from None


def refuse_unwritable(option: str, path: Path) -> None:
    """Raise ConfigError where a file could not be written later; nothing is made or changed."""
    why = None
    if path.is_dir():
        why = "it is a folder; name a file"
    elif not path.parent.is_dir():
        why = "there is no such folder; make it first"
    elif not os.access(path if path.exists() else path.parent, os.W_OK):
        why = "permission denied"
    if why:
        raise ConfigError(f"{option} {path} cannot be written: {why}")


def described(about: Mapping[str, Any]) -> dict[str, Any]:
    """The columns `ABOUT` of a run; rates are those of the first side's device."""
    m = about["machine"]
    rates = next(iter(about["floors"].values()), {"copy_gb_s": "", "gemm_gflop_s": ""})
    return {
        "clock": about["clock"], "threads": m["threads"], "load": m["load"], **rates,
        "machine": heading(m), "command": about["command"],
    }  # fmt: skip


def heading(machine: Mapping[str, Any]) -> str:
    """The machine in one line."""
    devices = "; ".join(f"{name}: {device}" for name, device in machine["devices"].items())
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{devices}; {machine['cores']} cores, {machine['threads']} threads; {machine['system']}; "
        f"Python {machine['python']}, {versions}"
    )


def _cell(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
