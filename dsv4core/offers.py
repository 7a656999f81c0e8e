"""What plugins add to a created backend, its ops and linear kernels: each is asked by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from dsv4core import _log
from dsv4core.errors import PluginError
from dsv4core.linear import LinearKernel
from dsv4core.ops import OPS
from dsv4core.plugins import OWN_DISTRIBUTION, Plugin
from dsv4core.probe import describe

if TYPE_CHECKING:
    from dsv4core.registry import Registry
    from dsv4core.spec import BackendSpec

T = TypeVar("T")


def offers(
    known: Registry, spec: BackendSpec, provider: Any, hook: str, read: Callable[[Any], T]
) -> Iterator[tuple[Plugin, T]]:
    """What the plugins answer to a hook, as `read` has it.

    A plugin that fails is left out with a warning: the backends of others do not stop with it. Raises
    PluginError where it is the backend's own.
    """
    for plugin, caller in known.each(hook):
        try:
            found = [read(answer) for answer in caller(backend=provider)]
        except (Exception, SystemExit) as error:
            what = f"{hook} of plugin '{plugin.name}' ({plugin.origin}) failed: {describe(error)}"
            if spec.name in plugin.backends:
                raise PluginError(f"backend {spec.name!r}: {what}") from error
            _log.warning("backend %s goes without: %s; %s", spec.name, what, _remedy(known, plugin))
        else:
            yield from ((plugin, one) for one in found)


def functions(answer: Any) -> Mapping[str, Any]:
    """An answer to `dsv4core_op_overrides`. Raises PluginError for what is not ops by name."""
    if not isinstance(answer, Mapping):
        raise PluginError(f"it returned a {type(answer).__name__}; a mapping from op names is expected")
    found = dict(cast("Mapping[str, Any]", answer))
    unknown = ", ".join(sorted(str(op) for op in found if op not in OPS))
    if unknown:
        raise PluginError(f"it overrides {unknown}; the ops are {', '.join(OPS)}")
    for op, function in found.items():
        if not callable(getattr(function, "function", function)):
            raise PluginError(f"op {op} is a {type(function).__name__}; a function is expected")
    return found


def kernels(answer: Any) -> list[LinearKernel]:
    """An answer to `dsv4core_linear_kernels`. Raises PluginError for what is no list of usable kernels."""
    if isinstance(answer, LinearKernel) or not isinstance(answer, Iterable):
        raise PluginError(f"it returned a {type(answer).__name__}; a list of kernels is expected")
    found = list(cast("Iterable[Any]", answer))  # a generator may fail half-way
    for kernel in found:
        if not isinstance(kernel, LinearKernel):
            raise PluginError(
                f"it returned {type(kernel).__name__}; expected objects derived from"
                " dsv4core.linear.LinearKernel"
            )
        name, rank = (getattr(kernel, what, None) for what in ("name", "rank"))
        if not isinstance(name, str) or not name or not isinstance(rank, int):
            raise PluginError(
                f"{type(kernel).__name__} has name {name!r} and rank {rank!r}; expected a text and a whole"
                " number"
            )
    return found


def _remedy(known: Registry, plugin: Plugin) -> str:
    if plugin.distribution == OWN_DISTRIBUTION:
        return f"update {OWN_DISTRIBUTION}"
    others = dict.fromkeys(
        other.name
        for other in known.plugins
        if other.problem is None and other.name != plugin.name and other.distribution != OWN_DISTRIBUTION
    )
    return f"uninstall {plugin.distribution or plugin.value}, or type DSV4CORE_PLUGINS={','.join(others)}"
