"""The report as JSON, schema 1: all that is needed to repeat a run, and every case with its outcome."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import dsv4core
from dsv4core.layout import get_layout
from dsv4core.ops import OPS
from dsv4core.probe import installed_version
from dsv4core.registry import get_registry
from dsv4core.runtime import device_name
from dsv4core_conformance import caselist
from dsv4core_conformance.contracts import CONTRACTS
from dsv4core_conformance.deviations import Declared
from dsv4core_conformance.report.record import SCHEMA, Record
from dsv4core_conformance.result import CaseResult, count, verdict
from dsv4core_conformance.subject import Subject

DISTRIBUTIONS = ("dsv4core", "torch", "triton", "triton-rocm", "triton-xpu", "numpy", "pytest")
VARIABLES = ("DSV4CORE_", "TRITON_")
MORE_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK",
    "OMP_NUM_THREADS",
)
OUTPUTS = (
    "--report",
    "--html",
    "--dsv4core-report",
    "--dsv4core-html",
    "--junitxml",
    "--junit-xml",
    "--basetemp",
    "--rootdir",
)
"""Options that say where to write: they are no part of what was run and are left out of the command."""

PAGES_KEPT = 24
"""Failures whose page bytes are kept; a backend with one wrong byte everywhere needs no more."""


def build(
    subject: Subject,
    results: Sequence[CaseResult],
    *,
    names: Sequence[str],
    level: str,
    complete: bool,
    declared: Iterable[Declared],
    arguments: Sequence[str],
    started: datetime,
    seconds: float,
    exit_code: int,
) -> Record:
    """Put a run into plain JSON values.

    `names` are the ids of the whole case list; `complete` says that every case of the level has an outcome.
    """
    tier = "portable" if _only_portable(results) else subject.tier
    return {
        "schema": SCHEMA,
        "suite": {
            "version": dsv4core.__version__,
            "case_list": caselist.version(),
            "case_list_sha256": caselist.digest(names),
            "cases": len(names),
        },
        "backend": {
            "name": subject.name,
            "device_type": subject.backend.device_type,
            **_origin(subject.name),
            "features": sorted(subject.features),
            "layouts": {name: get_layout(name).fingerprint for name in sorted(subject.layouts)},
            "ops": {op: subject.backend.ops.provenance[op] for op in OPS},
            "own_ops": [op for op in OPS if op in subject.own_ops],
        },
        "device": {
            "name": device_name(subject.device),
            "torch": str(subject.device),
            "driver": _driver(subject),
        },
        "tier": tier,
        "level": level,
        "complete": complete,
        "verdict": verdict(results),
        "exit_code": exit_code,
        "totals": count(results),
        "versions": {name: version for name in DISTRIBUTIONS if (version := installed_version(name))},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git": _git(),
        "environment": environment(os.environ),
        "command": command(arguments),
        "started": started.isoformat(),
        "seconds": round(seconds, 3),
        "bounds": {
            op: {"kind": contract.kind, "bound": contract.bound} for op, contract in CONTRACTS.items()
        },
        "deviations": [item.as_dict() for item in declared],
        "cases": _cases(results),
    }


def command(arguments: Sequence[str]) -> str:
    """The command line without the options that only say where to write."""
    kept: list[str] = []
    skip = False
    for word in arguments:
        if skip or word.partition("=")[0] in OUTPUTS:
            skip = not skip and word in OUTPUTS
            continue
        kept.append(word)
    return shlex.join(["python", "-m", "pytest", *kept])


def environment(values: Mapping[str, str]) -> dict[str, str]:
    """The variables that can change a result; folders cannot and stay out."""
    return {
        name: values[name]
        for name in sorted(values)
        if (name.startswith(VARIABLES) and not name.endswith(("_DIR", "_PATH"))) or name in MORE_VARIABLES
    }


def _cases(found: Iterable[CaseResult]) -> list[dict[str, Any]]:
    """Every case without what is empty; page bytes only with the first failures that have some."""
    plain: list[dict[str, Any]] = []
    pages = 0
    for result in found:
        values = result.as_dict()
        if "page_hex" in result.facts:
            pages += 1
            keep = pages <= PAGES_KEPT and result.outcome == "fail"
            values["facts"] = {k: v for k, v in result.facts.items() if keep or k != "page_hex"}
        values["seconds"] = round(result.seconds, 6)
        plain.append({name: value for name, value in values.items() if value or name == "seconds"})
    return plain


def _only_portable(found: Sequence[CaseResult]) -> bool:
    outcomes = {result.outcome for result in found}
    return "portable" in outcomes and not outcomes & {"pass", "fail", "declared"}


def _origin(name: str) -> dict[str, str]:
    """The distribution that a backend comes from."""
    row = next(row for row in get_registry().rows() if row.name == name)
    return {"distribution": row.distribution, "version": row.version, "plugin": row.plugin}


def _driver(subject: Subject) -> list[str]:
    """What the plugin knows about drivers, and the runtime that torch was built with."""
    import torch

    found: list[str] = []
    try:
        found = [
            line for lines in get_registry().hook.dsv4core_info(spec=subject.backend.spec) for line in lines
        ]
    except Exception as error:  # a plugin's extra lines are never worth failing for
        found = [f"unknown: {error}"]
    runtimes = {
        "CUDA": torch.version.cuda,
        "HIP": torch.version.hip,
        "XPU": getattr(torch.version, "xpu", None),
    }
    return found + [f"torch built for {name} {version}" for name, version in runtimes.items() if version]


def _git() -> dict[str, Any] | None:
    """Commit and state of the checkout that this package lies in; nothing for an installed one."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        commit = _output(root, "rev-parse", "HEAD")
        return {
            "commit": commit,
            "changed": bool(_output(root, "status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def _output(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()
