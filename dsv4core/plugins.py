"""What is known of installed plugins as data: entry points before they are loaded, rows and reasons after."""

import importlib.metadata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pluggy

from dsv4core import env, hookspecs, probe
from dsv4core.errors import DuplicateBackendError
from dsv4core.spec import Availability, BackendRow, Code, Depth

OWN_DISTRIBUTION = "dsv4core"
"""The distribution whose plugins are seen first, so that nobody else can take their names."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """An entry point that was seen: where it comes from, what it provides, what went wrong."""

    name: str
    value: str
    distribution: str
    version: str
    backends: tuple[str, ...] = ()
    problem: Availability | None = None

    @property
    def origin(self) -> str:
        """Distribution and version, as printed in reasons."""
        return f"{self.distribution} {self.version}".strip() or self.value


def read(
    found: Iterable[importlib.metadata.EntryPoint],
) -> Iterator[tuple[Plugin, importlib.metadata.EntryPoint]]:
    """Yield what is known of each entry point before it is loaded.

    A distribution's metadata is read once for all its entry points.
    """
    known: dict[int, tuple[importlib.metadata.Distribution, str, str]] = {}  # keeps them, so ids stay theirs
    for point in found:
        dist = point.dist
        if dist is None:
            yield Plugin(point.name, point.value, "", ""), point
            continue
        if id(dist) not in known:
            known[id(dist)] = dist, *probe.identity(dist)
        yield Plugin(point.name, point.value, *known[id(dist)][1:]), point


def own_first(pair: tuple[Plugin, object]) -> tuple[bool, str, str]:
    """Sort key: this distribution's plugins, then others by name."""
    plugin = pair[0]
    return plugin.distribution != OWN_DISTRIBUTION, plugin.name, plugin.distribution


def row_of(
    name: str,
    answer: Availability,
    plugin: Plugin,
    depth: Depth,
    device_type: str | None,
    priority: int | None,
) -> BackendRow:
    """Return what ``dsv4core.backends()`` shows of a backend or of a plugin that could not become one."""
    return BackendRow(
        name=name,
        available=answer.ok,
        code=answer.code,
        reason=answer.reason,
        hint=answer.hint,
        depth=depth,
        device=answer.device,
        device_type=device_type,
        priority=priority,
        plugin=plugin.value,
        distribution=plugin.distribution,
        version=plugin.version,
    )


def answer_of(row: BackendRow) -> Availability:
    """Return the answer that a row shows."""
    return Availability(row.available, row.code, row.reason, row.hint, row.device)


def broken(reason: str, plugin: Plugin) -> Availability:
    """Answer for a plugin that does not do what it should."""
    hint = f"update or uninstall {plugin.distribution}" if plugin.distribution else ""
    return Availability.missing(Code.PLUGIN_BROKEN, reason, hint)


def duplicate(what: str, name: str, first: Plugin, second: Plugin) -> Availability:
    """Answer for a name that somebody else has."""
    error = DuplicateBackendError(
        f"the {what} name '{name}' of {second.origin} is taken by {first.origin} ({first.value})"
    )
    return Availability.missing(
        Code.PLUGIN_BROKEN, str(error), f"uninstall {second.distribution} or ask it to use another name"
    )


def explain(error: BaseException) -> str:
    """Describe a failure, with the nearest hook when a plugin implements one that does not exist."""
    text = probe.describe(error)
    if isinstance(error, pluggy.PluginValidationError) and "unknown hook" in text:
        wrong = text.split("'")[1]
        near = env.nearest(wrong, [name for name in dir(hookspecs) if name.startswith("dsv4core_")])
        return f"unknown hook '{wrong}'" + (f"; did you mean '{near}'?" if near else "")
    return text
