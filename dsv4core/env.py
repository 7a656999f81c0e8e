"""Every environment variable dsv4core reads, in one table; the documentation is generated from it."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dsv4core import _log
from dsv4core.errors import ConfigError

PREFIX = "DSV4CORE_"
"""Start of every variable of this package."""


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable: its name, what it means unset, what it may hold, one line of documentation."""

    name: str
    default: str
    values: tuple[str, ...]
    form: str
    doc: str


VARIABLES: tuple[Variable, ...] = (
    Variable(
        "DSV4CORE_BACKEND",
        "auto",
        (),
        "`auto`, a name, or names by comma",
        "Backend to use: the best that can run, exactly this one, or the first of the list that can run.",
    ),
    Variable(
        "DSV4CORE_DISABLE_BACKENDS",
        "",
        (),
        "names by comma",
        "Backends to treat as unavailable; they are not probed.",
    ),
    Variable(
        "DSV4CORE_PLUGINS",
        "all",
        (),
        "entry point names by comma; empty for none",
        "Third-party plugins to load. The built-in ones are always loaded.",
    ),
    Variable(
        "DSV4CORE_FALLBACK",
        "warn",
        ("error", "warn", "allow"),
        "`error`, `warn` or `allow`",
        "When a backend lacks an op: refuse, or use the portable body with or without a log line.",
    ),
    Variable(
        "DSV4CORE_LINEAR",
        "",
        (),
        "names by comma",
        "Linear kernels to use, in this order and no others; `dsv4core info --linear` lists them.",
    ),
    Variable(
        "DSV4CORE_CHECK",
        "",
        ("0", "1"),
        "`0` or `1`",
        "Check the values of op arguments too (ranges, NaN). Unset: on for tensors in host memory, else off.",
    ),
    Variable(
        "DSV4CORE_FLASHMLA_LIBRARY",
        "",
        (),
        "a path",
        "Shared library of a FlashMLA build for the backend cuda, instead of whatever is installed.",
    ),
    Variable(
        "DSV4CORE_TRACE",
        "0",
        ("0", "1"),
        "`0` or `1`",
        "Write every call of a plugin hook to standard error.",
    ),
    Variable(
        "DSV4CORE_LOG",
        "warning",
        ("debug", "info", "warning", "error"),
        "`debug`, `info`, `warning` or `error`",
        "Log level of the command line; the library itself attaches no handler.",
    ),
)

_BY_NAME: Mapping[str, Variable] = {variable.name: variable for variable in VARIABLES}


def read(name: str, environ: Mapping[str, str] | None = None) -> str:
    """Return the value of a declared variable, or its default when it is not set.

    An empty value means "not set", except for ``DSV4CORE_PLUGINS``, where it means "none".

    Raises:
        KeyError: the variable is not declared in ``VARIABLES``.
        ConfigError: the variable holds a word it may not hold.
    """
    variable = _BY_NAME[name]
    value = (os.environ if environ is None else environ).get(name)
    if value is None:
        return variable.default
    value = value.strip()
    if not value:
        return "" if name == "DSV4CORE_PLUGINS" else variable.default
    if variable.values and value not in variable.values:
        raise ConfigError(
            f"{name}={value}: expected {' or '.join(variable.values)}{_suggest(value, variable.values)}"
        )
    return value


def read_names(name: str, environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return the names in a declared variable that holds a comma list, each once and without blanks."""
    return tuple(dict.fromkeys(item for item in map(str.strip, read(name, environ).split(",")) if item))


def settings(backend: str, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables ``DSV4CORE_<BACKEND>_*`` of one backend, keys in lower case without the prefix."""
    prefix = _of(backend)
    values = os.environ if environ is None else environ
    return {
        key[len(prefix) :].lower(): value
        for key, value in sorted(values.items())
        if key.startswith(prefix) and key not in _BY_NAME
    }


def present(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return every ``DSV4CORE_*`` variable that is set, known or not, in order."""
    values = os.environ if environ is None else environ
    return {key: values[key] for key in sorted(values) if key.startswith(PREFIX)}


Declared = Mapping[str, tuple[str, ...] | None]
"""Backends with the settings that each declares; None where it does not say."""


def unknown(
    backends: Declared | None = None, environ: Mapping[str, str] | None = None
) -> dict[str, str | None]:
    """Return each set ``DSV4CORE_*`` variable that nothing reads, with the nearest known name or None.

    Of a backend that declares its settings only those are read; of another one whatever bears its name.
    """
    declared = backends or {}
    anything = tuple(_of(backend) for backend, names in declared.items() if names is None)
    known = [*_BY_NAME, *(_of(b) + name.upper() for b, names in declared.items() for name in names or ())]
    return {
        name: _nearest_variable(name, known)
        for name in present(environ)
        if name not in known and not name.startswith(anything)
    }


def warn_unknown(backends: Declared | None = None) -> None:
    """Log a warning for each set ``DSV4CORE_*`` variable that nothing reads."""
    for name, near in unknown(backends).items():
        _log.warning("%s is set, but nothing reads it%s", name, f"; did you mean {near}?" if near else "")


def markdown() -> str:
    """Return the table of variables as Markdown, for the documentation."""
    lines = ["| variable | values | default | meaning |", "|---|---|---|---|"]
    for variable in VARIABLES:
        default = f"`{variable.default}`" if variable.default else ""
        lines.append(f"| `{variable.name}` | {variable.form} | {default} | {variable.doc} |")
    return "\n".join(lines) + "\n"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word most like ``word``, or None when none is near."""
    import difflib  # only needed on the way to an error message

    by_fold = {item.casefold(): item for item in known}
    found = difflib.get_close_matches(word.casefold(), list(by_fold), n=1, cutoff=0.6)
    return by_fold[found[0]] if found else None


def _of(backend: str) -> str:
    return f"{PREFIX}{backend.upper()}_"


def _nearest_variable(name: str, known: Iterable[str]) -> str | None:
    near = nearest(name.removeprefix(PREFIX), [variable.removeprefix(PREFIX) for variable in known])
    return PREFIX + near if near else None  # compared without the prefix, which makes everything look alike


def _suggest(word: str, known: Iterable[str]) -> str:
    near = nearest(word, known)
    return f"; did you mean {near}?" if near else ""
