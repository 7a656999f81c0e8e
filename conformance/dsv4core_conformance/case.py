"""A case: one stable name, what it judges, what it needs, and a function that raises when a backend is wrong.

Case names are ours and not pytest's: node ids change with the folder a run starts in, while deviations,
reports and the case list must not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from dsv4core_conformance.subject import Subject

Level = Literal["layout", "core", "extended"]
LEVELS: tuple[Level, ...] = ("layout", "core", "extended")

FAMILIES = (
    "bytes", "cross", "stride", "bigoff", "poison", "empty", "chunk", "predec", "batch", "pageperm", "spec",
    "resume", "xfer", "sink", "heads", "shapes", "topk", "det", "rope", "enc", "graph", "race", "work",
    "caps", "mutant",
)  # fmt: skip
"""The case families; `families/<name>` holds the cases of each, a module or a package."""


@dataclass(frozen=True)
class Case:
    """One conformance case.

    `ops`: the ops it judges; one that is not the backend's own makes the case `portable`. `layouts`: ids
    that a backend must claim for the case to apply. `needs`: features of the same kind. `catches`: rows of
    the field bug catalogue that it would have found. `limit`: seconds after which it counts as hung, and
    a minute more on a device, where kernels are compiled by the first case that needs them.
    """

    id: str
    family: str
    level: Level
    ops: tuple[str, ...]
    layouts: tuple[str, ...]
    needs: frozenset[str]
    catches: tuple[str, ...]
    limit: float
    summary: str
    run: Callable[[Subject], None]


CASES: dict[str, Case] = {}


class NotRun(Exception):
    """Raised by a case that has no meaning here: the report says `not run` and why, and it earns no tick."""


class Unclaimed(NotRun):
    """Raised by a case that needs a feature which the backend does not claim."""


def case(
    template: str,
    *,
    level: Level = "core",
    ops: Iterable[str] = (),
    layouts: Iterable[str] = (),
    needs: Iterable[str] = (),
    catches: Iterable[str] = (),
    limit: float = 60.0,
    **axes: Iterable[Any],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register the decorated function as one case per combination of `axes`.

    `template` names the case and may hold axis names in braces; an axis `op` or `layout` also counts as an op
    judged or a layout needed. An axis value that is a mapping spreads into keyword arguments and is shown by
    its key "name". The function's first line of documentation is the case's summary.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        inside, _, family = function.__module__.rpartition("families.")
        family = family.partition(".")[0] if inside else function.__module__.rpartition(".")[2]
        for values in itertools.product(*axes.values()):
            chosen = dict(zip(axes, values, strict=True))
            arguments: dict[str, Any] = {}
            for axis, value in chosen.items():
                spread = (
                    {k: v for k, v in value.items() if k != "name"} if _is_named(value) else {axis: value}
                )
                arguments.update(spread)
            shown = {axis: value["name"] if _is_named(value) else value for axis, value in chosen.items()}
            name = template.format(**shown)
            if name in CASES:
                raise ValueError(f"two cases are called {name!r}")
            CASES[name] = Case(
                name,
                family,
                level,
                tuple(dict.fromkeys([*ops, *_one(arguments, "op")])),
                tuple(dict.fromkeys([*layouts, *_one(arguments, "layout")])),
                frozenset(needs),
                tuple(catches),
                limit,
                (function.__doc__ or "").strip().splitlines()[0],
                _bound(function, arguments),
            )
        return function

    return register


def load_cases() -> Mapping[str, Case]:
    """Import every family and return all cases by name, in a fixed order."""
    for family in FAMILIES:
        import_module(f"dsv4core_conformance.families.{family}")
    return CASES


def _is_named(value: object) -> bool:
    return isinstance(value, Mapping) and "name" in value


def _one(arguments: Mapping[str, Any], axis: str) -> tuple[str, ...]:
    return (arguments[axis],) if isinstance(arguments.get(axis), str) else ()


def _bound(function: Callable[..., None], arguments: Mapping[str, Any]) -> Callable[[Subject], None]:
    def run(subject: Subject) -> None:
        function(subject, **arguments)

    return run
