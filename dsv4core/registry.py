"""Finds backend plugins, one entry point at a time: a broken one becomes a row with its reason.

Loading them in bulk would let one failing vendor hide every backend, and would drop duplicates in silence.
"""

import importlib
import importlib.metadata
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pluggy

from dsv4core import _log, env, hookspecs, plugins, probe
from dsv4core.errors import ConfigError, PluginError
from dsv4core.plugins import OWN_DISTRIBUTION, Plugin, broken, duplicate, row_of
from dsv4core.spec import SUPPORTED_API_VERSIONS, Availability, BackendRow, BackendSpec, Code, Depth

GROUP = "dsv4core.backends"
"""Entry-point group of backend plugins."""

THIRD_PARTY_PRIORITIES = range(1, 100)
"""Priorities open to other distributions."""

_HEAVY = ("torch", "pydantic", "numpy", "triton")


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
        self._loaded: list[tuple[Plugin, object]] = []
        self._owner: dict[str, tuple[Plugin, object]] = {}
        self._refused: list[BackendRow] = []
        self._answers: dict[tuple[str, Depth], Availability] = {}
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._defaults = _Defaults()
        self._manager.register(self._defaults, name="dsv4core.defaults")
        if _traced():
            from dsv4core._trace import trace

            trace(self._manager)
        found = importlib.metadata.entry_points(group=GROUP) if entry_points is None else entry_points
        self._load_all(found)
        disabled = env.read_names("DSV4CORE_DISABLE_BACKENDS")
        _warn_absent("DSV4CORE_DISABLE_BACKENDS", disabled, self.names(), "which no backend is called")
        env.warn_unknown(self.settings)

    @property
    def hook(self) -> pluggy.HookRelay:
        """Callers of the hooks over every loaded plugin, in pluggy's sense."""
        return self._manager.hook

    @property
    def settings(self) -> dict[str, tuple[str, ...] | None]:
        """Backends with the settings that each declares to read, None where it does not say."""
        return {name: spec.settings for name, spec in self.specs.items()}

    def names(self) -> tuple[str, ...]:
        """Return every name one may ask for: backends, and plugins that could not become one."""
        return tuple(dict.fromkeys([*self.specs, *(row.name for row in self._refused)]))

    def probe(self, name: str, depth: Depth) -> Availability:
        """Return whether a backend can run here; asked once per depth, then remembered."""
        if name in env.read_names("DSV4CORE_DISABLE_BACKENDS"):
            hint = "take it out of DSV4CORE_DISABLE_BACKENDS"
            return Availability.missing(Code.DISABLED, "disabled by DSV4CORE_DISABLE_BACKENDS", hint)
        if name not in self.specs:
            return next(plugins.answer_of(row) for row in self._refused if row.name == name)
        if (name, depth) not in self._answers:
            self._answers[name, depth] = self._ask(name, depth)
        return self._answers[name, depth]

    def rows(self, depth: Depth | None = None) -> tuple[BackendRow, ...]:
        """Return one row per backend, best first, then the plugins that are broken.

        Without a depth, each row shows the deepest answer already known and asks no new deep question.
        """
        ranked = sorted(self.specs.values(), key=lambda spec: (-spec.priority, spec.name))
        return (*(self._row(spec, depth) for spec in ranked), *self._refused)

    def creator(self, name: str) -> pluggy.HookCaller:
        """Return the hook that builds a backend's provider: its own plugin's, then the core's."""
        return self._only(self._owner[name][1], "dsv4core_create")

    def each(self, hook: str) -> Iterator[tuple[Plugin, pluggy.HookCaller]]:
        """Yield every loaded plugin with a hook that reaches it alone, so that a failure has a name."""
        return ((plugin, self._only(module, hook)) for plugin, module in self._loaded)

    def _row(self, spec: BackendSpec, depth: Depth | None) -> BackendRow:
        shown: Depth = depth or ("device" if (spec.name, "device") in self._answers else "static")
        answer = self.probe(spec.name, shown)
        plugin, _ = self._owner[spec.name]
        return row_of(spec.name, answer, plugin, shown, spec.device_type, spec.priority)

    def _ask(self, name: str, depth: Depth) -> Availability:
        plugin, module = self._owner[name]
        try:
            answer = self._only(module, "dsv4core_probe")(spec=self.specs[name], depth=depth)
        except (Exception, SystemExit) as error:
            return broken(f"its probe failed: {probe.describe(error)}", plugin)
        if isinstance(answer, Availability):
            return answer
        return broken(f"its probe returned {type(answer).__name__}, not an Availability", plugin)

    def _only(self, module: object, hook: str) -> pluggy.HookCaller:
        """Return a hook that reaches one plugin and the defaults, so that no other can disturb it."""
        others = [other for other in self._manager.get_plugins() if other not in (module, self._defaults)]
        return self._manager.subset_hook_caller(hook, others)

    def _load_all(self, found: Iterable[importlib.metadata.EntryPoint]) -> None:
        allowed = env.read_names("DSV4CORE_PLUGINS")
        everyone = env.read("DSV4CORE_PLUGINS") == "all"
        seen: dict[str, Plugin] = {}
        ordered = sorted(plugins.read(found), key=plugins.own_first)
        for plugin, point in ordered:
            own = plugin.distribution == OWN_DISTRIBUTION
            first = seen.setdefault(plugin.name, plugin)
            if first is not plugin:
                if (first.value, first.distribution) != (plugin.value, plugin.distribution):
                    self._refuse(plugin, duplicate("plugin", plugin.name, first, plugin))
            elif not (own or everyone or plugin.name in allowed):
                reason = f"not loaded: DSV4CORE_PLUGINS does not name it ({plugin.origin})"
                hint = f"add {plugin.name} to DSV4CORE_PLUGINS"
                self._refuse(plugin, Availability.missing(Code.DISABLED, reason, hint))
            else:
                self._load(plugin, point)
        if not everyone:
            _warn_absent("DSV4CORE_PLUGINS", allowed, seen, "which is not installed")

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
            self._refuse(plugin, broken(f"plugin failed to load: {plugins.explain(error)}", plugin))
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
        self.plugins.append(replace(plugin, backends=taken))
        self._loaded.append((self.plugins[-1], module))

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
            problem = duplicate("backend", spec.name, self._owner[spec.name][0], plugin)
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
            problem = broken(f"priority {spec.priority} is outside {limits}", plugin)
        if problem is not None:
            self._refused.append(row_of(spec.name, problem, plugin, "static", spec.device_type, None))
            return False
        self.specs[spec.name] = spec
        self._owner[spec.name] = (plugin, module)
        return True

    def _refuse(self, plugin: Plugin, problem: Availability) -> None:
        self._refused.append(row_of(plugin.name, problem, plugin, "static", None, None))
        self.plugins.append(replace(plugin, problem=problem))


def _traced() -> bool:
    """Say whether hook calls are traced; a wrong word is not worth doing without every backend."""
    try:
        return env.read("DSV4CORE_TRACE") == "1"
    except ConfigError as error:
        _log.warning("%s; nothing is traced", error)
        return False


def _warn_absent(variable: str, names: Iterable[str], known: Iterable[str], why: str) -> None:
    """Log a warning for each name in a variable that nothing here bears, with the nearest one that is."""
    there = tuple(known)
    for name in names:
        if name not in there:
            near = env.nearest(name, there)
            _log.warning(f"{variable} names '%s', {why}%s", name, f"; did you mean '{near}'?" if near else "")


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
