"""Finds backend plugins, one entry point at a time: a broken one becomes a row with its reason.

Loading them in bulk would let one failing vendor hide every backend, and would drop duplicates in silence.
"""

import importlib
import importlib.metadata
import logging
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pluggy

from dsv4core import env, hookspecs, probe
from dsv4core.errors import DuplicateBackendError, PluginError
from dsv4core.spec import SUPPORTED_API_VERSIONS, Availability, BackendRow, BackendSpec, Code, Depth

GROUP = "dsv4core.backends"
"""Entry-point group of backend plugins."""

OWN_DISTRIBUTION = "dsv4core"
"""The distribution whose plugins are seen first, so that nobody else can take their names."""

THIRD_PARTY_PRIORITIES = range(1, 100)
"""Priorities open to other distributions."""

_HEAVY = ("torch", "pydantic", "numpy", "triton")

_log = logging.getLogger("dsv4core")


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


class _Defaults:
    """The core's own answers, asked after every plugin."""

    @hookspecs.hookimpl(trylast=True)
    def dsv4core_probe(self, spec: BackendSpec, depth: Depth) -> Availability:
        return probe.probe(spec, depth)

    @hookspecs.hookimpl(trylast=True)
    def dsv4core_create(self, spec: BackendSpec, settings: Mapping[str, str]) -> Any:
        module, _, attribute = spec.factory.partition(":")
        return getattr(importlib.import_module(module), attribute)(settings)


class Registry:
    """All plugins of one process: their specs, what they answer to a probe, and the ones that are broken."""

    def __init__(self, entry_points: Iterable[importlib.metadata.EntryPoint] | None = None) -> None:
        self.specs: dict[str, BackendSpec] = {}
        self.plugins: list[Plugin] = []
        self._owner: dict[str, tuple[Plugin, object]] = {}
        self._refused: list[BackendRow] = []
        self._answers: dict[tuple[str, Depth], Availability] = {}
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._defaults = _Defaults()
        self._manager.register(self._defaults, name="dsv4core.defaults")
        if env.read("DSV4CORE_TRACE") == "1":
            trace(self._manager)
        found = importlib.metadata.entry_points(group=GROUP) if entry_points is None else entry_points
        self._load_all(found)
        env.warn_unknown(self.specs)

    @property
    def hook(self) -> pluggy.HookRelay:
        """Callers of the hooks over every loaded plugin, in pluggy's sense."""
        return self._manager.hook

    def names(self) -> tuple[str, ...]:
        """Return every name one may ask for: backends, and plugins that could not become one."""
        return tuple(dict.fromkeys([*self.specs, *(row.name for row in self._refused)]))

    def probe(self, name: str, depth: Depth) -> Availability:
        """Return whether a backend can run here; asked once per depth, then remembered."""
        if name in env.read_names("DSV4CORE_DISABLE_BACKENDS"):
            hint = "take it out of DSV4CORE_DISABLE_BACKENDS"
            return Availability.missing(Code.DISABLED, "disabled by DSV4CORE_DISABLE_BACKENDS", hint)
        if name not in self.specs:
            return next(_answer(row) for row in self._refused if row.name == name)
        if (name, depth) not in self._answers:
            self._answers[name, depth] = self._ask(name, depth)
        return self._answers[name, depth]

    def rows(self, depth: Depth | None = None) -> tuple[BackendRow, ...]:
        """Return one row per backend, best first, then the plugins that are broken.

        Without a depth, each row shows the deepest answer already known and asks no new deep question.
        """
        ranked = sorted(self.specs.values(), key=lambda spec: (-spec.priority, spec.name))
        return (*(self._row(spec, depth) for spec in ranked), *self._refused)

    def _row(self, spec: BackendSpec, depth: Depth | None) -> BackendRow:
        shown: Depth = depth or ("device" if (spec.name, "device") in self._answers else "static")
        answer = self.probe(spec.name, shown)
        plugin, _ = self._owner[spec.name]
        return _row(spec.name, answer, plugin, shown, spec.device_type, spec.priority)

    def _ask(self, name: str, depth: Depth) -> Availability:
        plugin, module = self._owner[name]
        try:
            answer = self._only(module, "dsv4core_probe")(spec=self.specs[name], depth=depth)
        except (Exception, SystemExit) as error:
            return _broken(f"its probe failed: {probe.describe(error)}", plugin)
        if isinstance(answer, Availability):
            return answer
        return _broken(f"its probe returned {type(answer).__name__}, not an Availability", plugin)

    def _only(self, module: object, hook: str) -> pluggy.HookCaller:
        """Return a hook that reaches one plugin and the defaults, so that no other can disturb it."""
        others = [other for other in self._manager.get_plugins() if other not in (module, self._defaults)]
        return self._manager.subset_hook_caller(hook, others)

    def _load_all(self, found: Iterable[importlib.metadata.EntryPoint]) -> None:
        allowed = env.read_names("DSV4CORE_PLUGINS")
        everyone = env.read("DSV4CORE_PLUGINS") == "all"
        seen: dict[str, Plugin] = {}
        ordered = sorted(_plugins(found), key=_own_first)
        for plugin, point in ordered:
            own = plugin.distribution == OWN_DISTRIBUTION
            first = seen.setdefault(plugin.name, plugin)
            if first is not plugin:
                if (first.value, first.distribution) != (plugin.value, plugin.distribution):
                    self._refuse(plugin, _duplicate("plugin", plugin.name, first, plugin))
            elif not (own or everyone or plugin.name in allowed):
                reason = f"not loaded: DSV4CORE_PLUGINS does not name it ({plugin.origin})"
                hint = f"add {plugin.name} to DSV4CORE_PLUGINS"
                self._refuse(plugin, Availability.missing(Code.DISABLED, reason, hint))
            else:
                self._load(plugin, point)
        for name in () if everyone else allowed:
            if name not in seen:
                near = env.nearest(name, seen)
                _log.warning(
                    "DSV4CORE_PLUGINS names '%s', which is not installed%s",
                    name,
                    f"; did you mean '{near}'?" if near else "",
                )

    def _load(self, plugin: Plugin, point: importlib.metadata.EntryPoint) -> None:
        before = set(sys.modules)
        registered: object = None
        try:
            module: object = point.load()
            if self._manager.is_registered(module):
                raise PluginError(f"{plugin.value} is already loaded by another entry point")
            registered = module
            self._manager.register(module, name=f"{plugin.name} ({plugin.origin})")
            self._manager.check_pending()
            specs = self._declared(module)
        except (Exception, SystemExit) as error:  # some vendor modules try to exit on import
            if registered is not None and self._manager.is_registered(registered):
                self._manager.unregister(registered)
            self._refuse(plugin, _broken(f"plugin failed to load: {_explain(error)}", plugin))
            return
        heavy = [name for name in _HEAVY if name in sys.modules and name not in before]
        if heavy:
            _log.warning(
                "plugin '%s' (%s) imports %s during discovery, which slows every start",
                plugin.name,
                plugin.origin,
                ", ".join(heavy),
            )
        taken = tuple(spec.name for spec in specs if self._accept(spec, plugin, module))
        self.plugins.append(_with(plugin, taken, None))

    def _declared(self, module: object) -> Sequence[BackendSpec]:
        """Return what a plugin's ``dsv4core_backends`` yields, checked for its type."""
        specs = [spec for result in self._only(module, "dsv4core_backends")() for spec in result]
        for spec in specs:
            if not isinstance(spec, BackendSpec):
                raise PluginError(
                    f"dsv4core_backends returned {type(spec).__name__}, not BackendSpec objects"
                )
        return specs

    def _accept(self, spec: BackendSpec, plugin: Plugin, module: object) -> bool:
        """Take a backend in, or note why not."""
        own = plugin.distribution == OWN_DISTRIBUTION
        problem: Availability | None = None
        if spec.name in self._owner:
            problem = _duplicate("backend", spec.name, self._owner[spec.name][0], plugin)
        elif spec.api_version not in SUPPORTED_API_VERSIONS:
            spoken = ", ".join(map(str, sorted(SUPPORTED_API_VERSIONS)))
            reason = f"{plugin.origin} speaks plugin interface {spec.api_version}, this dsv4core {spoken}"
            problem = Availability.missing(
                Code.API_MISMATCH,
                reason,
                f"install versions of dsv4core and {plugin.distribution} that match",
            )
        elif not own and spec.priority not in THIRD_PARTY_PRIORITIES:
            limits = f"{THIRD_PARTY_PRIORITIES[0]}..{THIRD_PARTY_PRIORITIES[-1]}"
            problem = _broken(f"priority {spec.priority} is outside {limits}", plugin)
        if problem is not None:
            self._refused.append(_row(spec.name, problem, plugin, "static", spec.device_type, None))
            return False
        self.specs[spec.name] = spec
        self._owner[spec.name] = (plugin, module)
        return True

    def _refuse(self, plugin: Plugin, problem: Availability) -> None:
        self._refused.append(_row(plugin.name, problem, plugin, "static", None, None))
        self.plugins.append(_with(plugin, (), problem))


def trace(manager: pluggy.PluginManager) -> None:
    """Log every hook call of ``manager``, arguments and result, to standard error."""
    log = logging.getLogger("dsv4core.trace")
    if not log.handlers:  # asked for by a variable, so the lines must show without any set-up
        log.addHandler(logging.StreamHandler())
        log.setLevel(logging.INFO)
        log.propagate = False

    def before(hook: str, methods: Sequence[pluggy.HookImpl], arguments: Mapping[str, Any]) -> None:
        log.info(
            "dsv4core: %s(%s) -> %s",
            hook,
            _brief(arguments),
            ", ".join(method.plugin_name for method in methods),
        )

    def after(
        outcome: pluggy.Result[Any],
        hook: str,
        methods: Sequence[pluggy.HookImpl],
        arguments: Mapping[str, Any],
    ) -> None:
        result = outcome.exception or outcome.get_result()
        log.info("dsv4core: %s = %r", hook, result)

    manager.add_hookcall_monitoring(before, after)


_lock = threading.RLock()
_current: list[Registry] = []


def get_registry() -> Registry:
    """Return the registry of this process; the first call loads the plugins."""
    with _lock:
        if not _current:
            _current.append(Registry())
        return _current[0]


def refresh() -> None:
    """Forget the registry, so that the next call looks at installed plugins and the environment afresh."""
    with _lock:
        _current.clear()
        probe.installed_version.cache_clear()


def _plugins(
    found: Iterable[importlib.metadata.EntryPoint],
) -> Iterator[tuple[Plugin, importlib.metadata.EntryPoint]]:
    """Yield what is known of each entry point before it is loaded.

    A distribution's metadata is parsed once for all its entry points: every look at a name or a version
    parses the whole file again, README included.
    """
    known: dict[int, tuple[importlib.metadata.Distribution, str, str]] = {}  # keeps them, so ids stay theirs
    for point in found:
        dist = point.dist
        if dist is None:
            yield Plugin(point.name, point.value, "", ""), point
            continue
        if id(dist) not in known:
            metadata = dist.metadata
            known[id(dist)] = dist, metadata["Name"], metadata["Version"]
        yield Plugin(point.name, point.value, *known[id(dist)][1:]), point


def _own_first(pair: tuple[Plugin, object]) -> tuple[bool, str, str]:
    plugin = pair[0]
    return plugin.distribution != OWN_DISTRIBUTION, plugin.name, plugin.distribution


def _with(plugin: Plugin, backends: tuple[str, ...], problem: Availability | None) -> Plugin:
    return Plugin(plugin.name, plugin.value, plugin.distribution, plugin.version, backends, problem)


def _row(
    name: str,
    answer: Availability,
    plugin: Plugin,
    depth: Depth,
    device_type: str | None,
    priority: int | None,
) -> BackendRow:
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


def _answer(row: BackendRow) -> Availability:
    return Availability(row.available, row.code, row.reason, row.hint, row.device)


def _broken(reason: str, plugin: Plugin) -> Availability:
    hint = f"update or uninstall {plugin.distribution}" if plugin.distribution else ""
    return Availability.missing(Code.PLUGIN_BROKEN, reason, hint)


def _duplicate(what: str, name: str, first: Plugin, second: Plugin) -> Availability:
    error = DuplicateBackendError(
        f"the {what} name '{name}' of {second.origin} is taken by {first.origin} ({first.value})"
    )
    return Availability.missing(
        Code.PLUGIN_BROKEN, str(error), f"uninstall {second.distribution} or ask it to use another name"
    )


def _explain(error: BaseException) -> str:
    """Describe a failure, with the nearest hook when a plugin implements one that does not exist."""
    text = probe.describe(error)
    if isinstance(error, pluggy.PluginValidationError) and "unknown hook" in text:
        wrong = text.split("'")[1]
        near = env.nearest(wrong, [name for name in dir(hookspecs) if name.startswith("dsv4core_")])
        return f"unknown hook '{wrong}'" + (f"; did you mean '{near}'?" if near else "")
    return text


def _brief(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={getattr(value, 'name', value)!r}" for key, value in arguments.items())
