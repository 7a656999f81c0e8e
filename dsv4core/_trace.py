"""Every call of a plugin hook on standard error, where DSV4CORE_TRACE asks for it."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pluggy


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


def _brief(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={getattr(value, 'name', value)!r}" for key, value in arguments.items())
