"""The list of all cases, written down and versioned; `python -m dsv4core_conformance.caselist` writes it.

Deviations, reports and issues name cases, so a name that changes or goes is a new version of the list.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

FILE = Path(__file__).with_name("caselist.txt")

_HEADER = re.compile(r"# version (\d+)")


def names() -> list[str]:
    """The ids of the list, in its order."""
    return [line for line in _lines() if line and not line.startswith("#")]


def version() -> int:
    """The version of the list."""
    return next((int(found[1]) for line in _lines() if (found := _HEADER.fullmatch(line))), 0)


def digest(ids: Iterable[str]) -> str:
    """The sha256 of a list of ids, whatever their order."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def render(ids: Iterable[str], number: int) -> str:
    """The list as text, in alphabetical order."""
    return "\n".join([f"# version {number}", *sorted(ids)]) + "\n"


def next_version(before: Iterable[str], now: Iterable[str], number: int) -> int:
    """One more when an id is gone, which breaks who named it; the same when ids only came."""
    return number + 1 if set(before) - set(now) and number else max(number, 1)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the list of the cases that there are now."""
    parser = argparse.ArgumentParser(prog="python -m dsv4core_conformance.caselist", description=main.__doc__)
    parser.add_argument(
        "--version", type=int, help="version of the list (default: one more when an id is gone)"
    )
    asked = parser.parse_args(argv).version
    from dsv4core_conformance.case import load_cases

    now = list(load_cases())
    FILE.write_text(render(now, asked or next_version(names(), now, version())), encoding="utf-8")


def _lines() -> list[str]:
    return FILE.read_text(encoding="utf-8").splitlines() if FILE.exists() else []


if __name__ == "__main__":
    main()
