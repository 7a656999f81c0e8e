"""The seven hooks a backend plugin may implement; this file is their documentation.

A plugin is a module named by an entry point of the group ``dsv4core.backends``. It holds data and strings:
importing it must import neither torch nor anything that does. The built-in backends use the same door::

    from dsv4core.hookspecs import hookimpl
    from dsv4core.spec import BackendSpec, Requirement

    SPEC = BackendSpec("acme", "acme", 50, "dsv4core_acme.backend:AcmeBackend", (Requirement("torch"),))

    @hookimpl
    def dsv4core_backends():
        return [SPEC]
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pluggy

from dsv4core.spec import Availability, BackendSpec, Depth, Deviation

PROJECT = "dsv4core"
"""Name of the project in pluggy's sense; hook names start with it."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def dsv4core_backends() -> Iterable[BackendSpec]:  # pyright: ignore[reportReturnType]
    """Return the backends this plugin provides.

    Called once per plugin, at discovery. Must not import torch. A plugin that only overrides ops of others
    leaves this hook out.
    """


@hookspec(firstresult=True)
def dsv4core_probe(spec: BackendSpec, depth: Depth) -> Availability | None:
    """Say whether a backend can run here, why not, and what to type.

    Asked of the plugin that provides ``spec``, then of the core, whose answer is ``spec.requires``.
    ``static`` looks at installed files only; ``device`` may import torch and count devices, but creates no
    context on any (a forked worker would inherit a broken one) and imports no library that logs, patches or
    exits on import. Return None to leave the answer to the core.
    """


@hookspec(firstresult=True)
def dsv4core_create(spec: BackendSpec, settings: Mapping[str, str]) -> Any:
    """Build the provider of ``spec``: an object with ``name``, ``device_type`` and a mapping ``ops``.

    ``settings`` holds the variables ``DSV4CORE_<NAME>_*``, keys in lower case without the prefix. Called
    once, on first use, of the plugin that provides ``spec``, then of the core, whose answer is
    ``factory(settings)`` with the factory of the spec. Return None to leave the answer to the core.
    """


@hookspec
def dsv4core_op_overrides(backend: Any) -> Mapping[str, Callable[..., Any]] | None:
    """Return ops to use in place of those of a created backend, by op name.

    The callables have the op's signature. Two plugins claiming one op of one backend is an error.
    """


@hookspec
def dsv4core_linear_kernels(backend: Any) -> Iterable[Any] | None:
    """Return kernels for the projections of a created backend: objects of ``dsv4core.linear.LinearKernel``.

    They are candidates beside the op ``linear``, of rank 0; for every projection the highest rank that
    supports it is taken. A kernel whose library or device is missing is returned all the same: its
    ``supports`` says so, and ``dsv4core info --linear`` shows it. A hook that raises is left out of other
    plugins' backends with a warning, and so is one that returns something else; likewise with overrides.
    """


@hookspec
def dsv4core_deviations(spec: BackendSpec) -> Iterable[Deviation] | None:
    """Return the conformance cases that are known to fail on a backend, with reasons."""


@hookspec
def dsv4core_info(spec: BackendSpec) -> Iterable[str] | None:
    """Return extra lines for ``dsv4core info``: driver, firmware, which distribution provides a module.

    Must import neither torch nor a vendor's library.
    """
