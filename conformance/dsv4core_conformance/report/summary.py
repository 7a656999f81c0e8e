"""The end of a run in a terminal: one line per family, the verdict, how to repeat what failed."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator

from dsv4core_conformance.report.record import Record, results
from dsv4core_conformance.result import OUTCOMES, CaseResult, count

FAILURES_SHOWN = 12


def title(record: Record) -> str:
    """Backend, device, tier and level."""
    backend, device = record["backend"], record["device"]
    return f"{backend['name']} on {device['name']}, tier {record['tier']}, level {record['level']}"


def lines(record: Record) -> Iterator[str]:
    """The summary, line by line."""
    found = results(record)
    families: dict[str, list[CaseResult]] = {}
    for result in found:
        families.setdefault(result.family, []).append(result)
    yield f"{'family':<12}" + "".join(f"{word:>11}" for word in OUTCOMES)
    for family, members in families.items():
        yield _line(family, members)
    yield _line("all", found)
    for item in record["deviations"]:
        state = "" if item["active"] else ", not on this device"
        yield f"declared {item['kind']} {item['case']}: {len(item['cases'])} cases{state}; {item['reason']}"
    failed = failures(found)
    for result in failed[:FAILURES_SHOWN]:
        yield f"FAIL {result.id}"
        yield f"     {_first(result.detail)}"
        yield f"     {reproduce(record, result.id)}"
    if len(failed) > FAILURES_SHOWN:
        yield f"and {len(failed) - FAILURES_SHOWN} more; --report FILE keeps them all"
    part = "" if record["complete"] else " (of a part of the level)"
    yield f"verdict: {record['verdict']}{part}, {record['seconds']:.0f} s"


def failures(found: Iterable[CaseResult]) -> list[CaseResult]:
    """What failed, the first of every family and op before the second of any: one fault breaks many cases."""
    seen: dict[tuple[str, tuple[str, ...]], int] = {}
    ranked: list[tuple[int, CaseResult]] = []
    for result in found:
        if result.outcome == "fail":
            key = result.family, result.ops
            seen[key] = seen.get(key, -1) + 1
            ranked.append((seen[key], result))
    return [result for _, result in sorted(ranked, key=lambda pair: pair[0])]


def reproduce(record: Record, case: str) -> str:
    """The command that runs one case of a record again."""
    variables = [
        f"{name}={shlex.quote(value)}" for name, value in record["environment"].items() if _matters(name)
    ]
    words = [
        "python",
        "-m",
        "pytest",
        "--pyargs",
        "dsv4core_conformance",
        "--backend",
        record["backend"]["name"],
    ]
    if record["tier"] == "foreign-device" or ":" in record["device"]["torch"]:
        words += ["--device", record["device"]["torch"]]
    words += ["--level", record["level"], "--case", case]
    return " ".join([*variables, shlex.join(words)])


def _matters(name: str) -> bool:
    return name == "TRITON_INTERPRET" or (
        name.startswith("DSV4CORE_") and name not in ("DSV4CORE_FALLBACK", "DSV4CORE_BACKEND")
    )


def _line(name: str, members: list[CaseResult]) -> str:
    numbers = count(members)
    return f"{name:<12}" + "".join(f"{numbers[word] or '-':>11}" for word in OUTCOMES)


def _first(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
