"""``dsv4core info``: what is installed, what can run and why not; works when torch is broken.

Standard library and the core's discovery only; everything heavier is imported inside a ``try`` of its own.
"""

import argparse
import importlib.metadata
import json
import platform
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dsv4core import env, registry, selection
from dsv4core.errors import BackendError, ConfigError, LinearError, UnknownBackendError
from dsv4core.probe import AVAILABLE, describe, installed_version
from dsv4core.spec import Depth

DISTRIBUTIONS = ("dsv4core", "torch", "pluggy", "pydantic", "packaging", "safetensors", "numpy")
"""Distributions whose versions are shown."""

MODULES = ("torch", "triton", "flash_mla", "cutlass", "aiter", "intel_extension_for_pytorch")
"""Modules that several distributions may install: info says which one does, and warns when two do."""

GROUPS = (registry.GROUP, "pytest11")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``dsv4core info``."""
    parser.add_argument("--probe", action="store_true", help="also look at devices; imports torch")
    parser.add_argument(
        "--ops", action="store_true", help="also show where each op of the chosen backend comes from"
    )
    parser.add_argument(
        "--linear", action="store_true", help="also show which kernel each kind of projection gets, and why"
    )


def run(args: argparse.Namespace) -> int:
    """Print the report; 0, or 2 for a variable that holds what it may not, or 4 when nothing can run."""
    device = args.probe or args.ops or args.linear
    report = collect("device" if device else "static", ops=args.ops, linear=args.linear)
    print(json.dumps(report, indent=2) if args.json else render(report))
    return int(report["exit"])


def collect(depth: Depth = "static", *, ops: bool = False, linear: bool = False) -> dict[str, Any]:
    """Return the whole report as plain JSON values; no part of it can make another part fail."""
    known = registry.get_registry()
    chosen, code = _chosen(depth)
    wrong = _wrong_variables()
    report: dict[str, Any] = {
        "exit": code or (2 if wrong else 0),
        "depth": depth,
        "versions": {name: installed_version(name) for name in DISTRIBUTIONS},
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "backends": [dict(row.as_dict()) for row in known.rows(depth)],
        "chosen": chosen,
        "plugins": [
            {
                "name": plugin.name,
                "module": plugin.value,
                "from": plugin.origin,
                "backends": list(plugin.backends),
            }
            for plugin in known.plugins
        ],
        "details": {name: _details(known, name) for name in known.specs},
        "variables": env.present(),
        "unknown_variables": env.unknown(known.settings),
        "wrong_variables": wrong,
        "modules": _or_error(_providers),
        "layouts": _or_error(_layouts),
        "notes": _notes(),
    }
    for name, wanted, part in (("ops", ops, _ops), ("linear", linear, _linear)):
        if wanted:
            missing = {"error": str(chosen.get("error", "")).splitlines()[0]} if code else {}
            report[name] = missing or _or_error(part)
            if "error" in report[name]:
                report["exit"] = code or 4
    if linear and "error" not in report["linear"] and (problem := _wrong_kernel()):
        wrong["DSV4CORE_LINEAR"] = problem
        report["exit"] = 2
    return report


def render(report: Mapping[str, Any]) -> str:
    """Return the report as text for people."""
    chosen = report["chosen"]
    probed = report["depth"] == "device"
    scope = "devices were looked at" if probed else "by installed files; --probe looks at devices"
    versions = [f"{name} {version or 'is not installed'}" for name, version in report["versions"].items()]
    sections = [
        ("dsv4core", [*versions, f"Python {report['python']}", report["platform"]]),
        (f"Backends ({scope})", [_backend_line(row, probed) for row in report["backends"]] or ["none"]),
        (f"Chosen ({scope})", _chosen_lines(chosen)),
        (
            "Devices and drivers",
            [f"{name}: {line}" for name, lines in report["details"].items() for line in lines],
        ),
        ("Variables", _variable_lines(report)),
        ("Modules and the distributions they come from", _pairs(report["modules"])),
        ("Layouts", _pairs(report["layouts"])),
        ("Ops", _pairs(report.get("ops", {}))),
        ("Linear kernels (projections of V4-Flash)", _linear_lines(report.get("linear", {}))),
        ("Notes", report["notes"]),
    ]
    return "\n\n".join(
        "\n".join([title, *(f"  {line}" for line in lines)]) for title, lines in sections if lines
    )


def entry_point_differences(checkout: Path) -> list[str]:
    """Return how the entry points of a checkout's ``pyproject.toml`` differ from the installed ones.

    They are read from installed metadata, so that editing the file changes nothing until it is reinstalled.
    """
    file = checkout / "pyproject.toml"
    if not file.is_file() or not re.search(
        r'^name = "dsv4core"$', file.read_text(encoding="utf-8"), re.MULTILINE
    ):
        return []
    if installed_version("dsv4core") is None:
        return ["this checkout is not installed: python -m pip install -e ."]
    installed = importlib.metadata.distribution("dsv4core").entry_points
    notes: list[str] = []
    for group in GROUPS:
        written = _written_entry_points(file.read_text(encoding="utf-8"), group)
        live = {point.name: point.value for point in installed if point.group == group}
        changed = sorted(name for name in written.keys() | live.keys() if written.get(name) != live.get(name))
        if changed:
            notes.append(
                f"entry points of {group} differ between {file.name} and the installed metadata "
                f"({', '.join(changed)}): python -m pip install -e ."
            )
    return notes


def _written_entry_points(text: str, group: str) -> dict[str, str]:
    """Read one table of entry points; a line is all it takes, and Python 3.10 has no TOML reader."""
    table = re.search(
        rf'^\[project\.entry-points\."?{re.escape(group)}"?\]\n((?:[^\[\n].*\n|\n)*)', text, re.MULTILINE
    )
    return dict(re.findall(r'^"?([\w.-]+)"? = "([^"]+)"', table[1], re.MULTILINE)) if table else {}


def _chosen(depth: Depth) -> tuple[dict[str, Any], int]:
    try:
        choice = selection.resolve(depth=depth)
    except BackendError as error:
        code = 2 if isinstance(error, UnknownBackendError) else 4
        return {"name": None, "error": str(error)}, code
    trace = [
        {"name": verdict.name, "accepted": verdict.accepted, "reason": verdict.reason}
        for verdict in choice.trace
    ]
    return {"name": choice.spec.name, "request": str(choice.request), "trace": trace}, 0


def _wrong_variables() -> dict[str, str]:
    """What is wrong with each variable that holds a word it may not hold."""
    found: dict[str, str] = {}
    for variable in env.VARIABLES:
        try:
            env.read(variable.name)
        except ConfigError as error:
            found[variable.name] = str(error).partition(": ")[2]
    return found


def _details(known: registry.Registry, name: str) -> list[str]:
    try:
        return [line for lines in known.hook.dsv4core_info(spec=known.specs[name]) for line in lines]
    except Exception as error:  # a plugin's extra lines are never worth failing for
        return [f"a plugin failed to describe itself: {describe(error)}"]


def _providers() -> dict[str, str]:
    by_module = importlib.metadata.packages_distributions()
    found: dict[str, str] = {}
    for module in MODULES:
        names = sorted(set(by_module.get(module, ())))
        text = ", ".join(f"{name} {installed_version(name)}" for name in names)
        clash = " (they overwrite each other: keep one)" if len(names) > 1 else ""
        found[module] = text + clash if names else "not installed"
    return found


def _layouts() -> dict[str, str]:
    from dsv4core.layout import layouts

    return {layout.id: layout.fingerprint for layout in layouts()}


def _ops() -> dict[str, str]:
    return dict(selection.get_backend().ops.provenance)


def _linear() -> dict[str, Any]:
    from dsv4core.linear.report import report

    return {f"{row['projection']}: {row.pop('problem')}": row for row in report(selection.get_backend())}


def _wrong_kernel() -> str:
    """What is wrong with DSV4CORE_LINEAR, which only the kernels of the chosen backend tell."""
    from dsv4core.linear.kernel import forced_names

    try:
        forced_names(selection.get_backend().linears.kernels)
    except LinearError as error:
        return str(error).partition(": ")[2]
    return ""


def _linear_lines(rows: Mapping[str, Any]) -> list[str]:
    """Every kind of projection with its kernel, then why no other; equal reasons one after another once."""
    if "error" in rows:
        return [str(rows["error"])]
    lines: list[str] = []
    before: Any = None
    for problem, row in rows.items():
        lines.append(f"{problem}  ->  {row['kernel'] or 'none'}")
        if row["refusals"] != before:
            lines += [f"    {name}: {reason}" for name, reason in row["refusals"].items()]
        before = row["refusals"]
    return lines


def _or_error(collect_part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return collect_part()
    except Exception as error:  # a broken torch raises anything, and the rest of the report explains it
        return {"error": f"cannot be shown: {describe(error)}"}


def _notes() -> list[str]:
    return entry_point_differences(Path(__file__).resolve().parents[2])


def _backend_line(row: Mapping[str, Any], probed: bool) -> str:
    hint = f"  ({row['hint']})" if row["hint"] else ""
    reason = row["reason"] if probed or row["reason"] != AVAILABLE.reason else "installed"
    return f"{row['name']:<8} {reason}{hint}"


def _chosen_lines(chosen: Mapping[str, Any]) -> list[str]:
    if chosen["name"] is None:
        return [str(chosen["error"]).splitlines()[0]]
    passed = [
        f"{verdict['name']}: {verdict['reason']}"
        for verdict in chosen["trace"]
        if verdict["name"] != chosen["name"]
    ]
    return [f"{chosen['name']} ({chosen['request']})", *passed]


def _variable_lines(report: Mapping[str, Any]) -> list[str]:
    unknown = report["unknown_variables"]
    lines: list[str] = []
    for name, value in report["variables"].items():
        note = ""
        if name in unknown:
            note = "  nothing reads this" + (f"; did you mean {unknown[name]}?" if unknown[name] else "")
        elif name in report["wrong_variables"]:
            note = f"  {report['wrong_variables'][name]}"
        lines.append(f"{name}={value}{note}")
    return lines or ["no DSV4CORE_* variable is set"]


def _pairs(values: Mapping[str, str]) -> list[str]:
    width = max(map(len, values), default=0)
    return [f"{name:<{width}}  {value}" for name, value in values.items()]
