"""Which backend is used, and why: a pure choice over data, and the calls that feed and act on it.

Order of precedence: argument, ``with use(...)``, ``DSV4CORE_BACKEND``, ``auto``.
"""

import functools
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from dsv4core import _log, env, registry
from dsv4core.errors import BackendUnavailableError, UnknownBackendError
from dsv4core.spec import Availability, BackendRow, BackendSpec, Code, Depth

if TYPE_CHECKING:
    from dsv4core.backend import Backend

_P = ParamSpec("_P")
_R = TypeVar("_R")
_used: ContextVar[str | None] = ContextVar("dsv4core_backend", default=None)
_WORRYING = frozenset({Code.PLUGIN_BROKEN, Code.API_MISMATCH, Code.VERSION_CONFLICT, Code.UNSUPPORTED_DEVICE})


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for: the words in order, and where they were said."""

    words: tuple[str, ...]
    source: str

    @classmethod
    def parse(cls, text: str, source: str) -> "Request":
        """Read ``auto``, a name, or names by comma; blanks are dropped, nothing at all means ``auto``."""
        words = dict.fromkeys(word for word in map(str.strip, text.split(",")) if word)
        return cls(tuple(words) or ("auto",), source)

    @property
    def auto(self) -> bool:
        """Whether the choice is left to priorities from the start."""
        return self.words[0] == "auto"

    def __str__(self) -> str:
        """Show the words and their source as one would type them."""
        text = ",".join(self.words)
        return f"DSV4CORE_BACKEND={text}" if self.source == "DSV4CORE_BACKEND" else f"{text}, {self.source}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one candidate of a choice; ``code`` is None when it was not asked."""

    name: str
    accepted: bool
    code: Code | None
    reason: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """The result of resolving a request: the backend, and every candidate's verdict in order."""

    request: Request
    spec: BackendSpec
    trace: tuple[Verdict, ...]


def candidates(request: Request, specs: Iterable[BackendSpec]) -> tuple[str, ...]:
    """Return the names to try, in order; ``auto`` stands for all of them by falling priority, then name."""
    ranked = [spec.name for spec in sorted(specs, key=lambda spec: (-spec.priority, spec.name))]
    tried: list[str] = []
    for word in request.words:
        tried += ranked if word == "auto" else [word]
    return tuple(dict.fromkeys(tried))


def select(
    request: Request, specs: Sequence[BackendSpec], availabilities: Mapping[str, Availability]
) -> tuple[BackendSpec | None, tuple[Verdict, ...]]:
    """Choose the first candidate that can run; a pure function, so it is tested without hardware.

    ``availabilities`` may lack candidates behind the chosen one: they were never probed. Returns the chosen
    spec, or None, and the verdict on every candidate.
    """
    by_name = {spec.name: spec for spec in specs}
    chosen: BackendSpec | None = None
    trace: list[Verdict] = []
    for name in candidates(request, specs):
        answer = availabilities.get(name)
        if chosen is not None:
            trace.append(
                Verdict(
                    name, False, answer.code if answer else None, f"not needed, {chosen.name} comes first"
                )
            )
        elif answer is None:
            trace.append(Verdict(name, False, None, "no backend has this name"))
        elif answer.by_name and not takes(request, name, answer):
            hint = f"DSV4CORE_BACKEND={name}"
            trace.append(Verdict(name, False, answer.code, f"{answer.reason}; only by its name", hint))
        else:
            accepted = answer.ok and name in by_name
            chosen = by_name[name] if accepted else None
            trace.append(Verdict(name, accepted, answer.code, answer.reason, answer.hint))
    return chosen, tuple(trace)


def takes(request: Request, name: str, answer: Availability) -> bool:
    """Say whether a candidate that answered so can be chosen: ``auto`` leaves what only runs by name."""
    return answer.ok and (name in request.words or not answer.by_name)


class Using:
    """What `use` returns: a ``with`` block, or a decorator, inside which one request holds."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[Token[str | None]] = []
        self._taken = False

    def __enter__(self) -> None:
        self._taken = True
        self._tokens.append(_used.set(self._text))

    def __exit__(self, *_: object) -> None:
        _used.reset(self._tokens.pop())

    def __call__(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        """Decorate a function: each call runs in a block of its own, whatever its thread."""
        self._taken, text = True, self._text

        @functools.wraps(function)
        def inside(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with Using(text):
                return function(*args, **kwargs)

        return inside

    def __del__(self) -> None:
        if not self._taken and not sys.is_finalizing():
            _log.warning("use(%r) chose nothing: type `with use(%r):`", self._text, self._text)


def use(name: str) -> Using:
    """Use a backend inside a ``with`` block: a name, names by comma, or ``auto``.

    Holds for the current thread or task; blocks nest, the innermost wins. As a decorator it holds for
    the calls of a function. A call that is neither chooses nothing, and a warning says so.

    Raises:
        UnknownBackendError: no installed plugin provides the name; raised by the call.
    """
    _check_known(Request.parse(_text(name, "use"), "use()"))
    return Using(name)


def current_request(name: str | None = None) -> Request:
    """Return what is asked for right now: argument, ``use``, environment, ``auto``."""
    if name is not None:
        return Request.parse(_text(name, "get_backend"), "the argument")
    used = _used.get()
    if used is not None:
        return Request.parse(used, "use()")
    source = "DSV4CORE_BACKEND" if os.environ.get("DSV4CORE_BACKEND", "").strip() else "the default"
    return Request.parse(env.read("DSV4CORE_BACKEND"), source)


def resolve(name: str | None = None, depth: Depth = "device") -> Choice:
    """Decide on a backend without creating it; candidates are probed in order until one can run.

    Raises:
        UnknownBackendError: a name that nothing provides, with the nearest one and the table of backends.
        BackendUnavailableError: no candidate can run here, with the table of reasons.
    """
    request = current_request(name)
    _check_known(request)
    known = registry.get_registry()
    specs = tuple(known.specs.values())
    answers: dict[str, Availability] = {}
    for candidate in candidates(request, specs):
        answers[candidate] = known.probe(candidate, depth)
        if takes(request, candidate, answers[candidate]):
            break
    chosen, trace = select(request, specs, answers)
    if chosen is None:
        raise BackendUnavailableError(f"{_refusal(request, trace)}\n{format_table(known.rows(depth))}")
    return Choice(request, chosen, trace)


def get_backend(name: str | None = None) -> "Backend":
    """Return the backend to use: ``name``, else ``use()``, ``DSV4CORE_BACKEND``, the best that can run.

    A backend is created once per process and then shared. The choice is logged in one line; when ``auto``
    passes over a better backend that is broken or whose device is there, the table is logged as a warning.

    Raises:
        UnknownBackendError: a name that nothing provides.
        BackendUnavailableError: nothing that was asked for can run here.
    """
    choice = resolve(name)
    known = registry.get_registry()
    with _lock:
        backend = _created.get(choice.spec)
        if backend is None:
            from dsv4core.backend import create_backend  # imports torch

            _announce(choice, known)
            backend = _created[choice.spec] = create_backend(choice.spec, known)
        return backend


def backends() -> tuple[BackendRow, ...]:
    """Return one row per known backend, best first, broken plugins last.

    Looks at installed files only and imports no torch: devices are looked at when a backend is chosen.
    """
    return registry.get_registry().rows("static")


def format_table(rows: Iterable[BackendRow]) -> str:
    """Return rows as lines for people: name, reason, and in brackets what to type."""
    lines = [
        (f"{row.name} ({row.distribution})" if row.priority is None else row.name, row.reason, row.hint)
        for row in rows
    ]
    if not lines:
        return "No backends here: the distribution dsv4core is not installed (python -m pip install -e .)"
    width = max(len(name) for name, _, _ in lines)
    table = [f"  {name:<{width}}  {reason}" + (f"  ({hint})" if hint else "") for name, reason, hint in lines]
    return "\n".join(["Backends here:", *table])


def worrying(choice: Choice, rows: Iterable[BackendRow]) -> bool:
    """Say whether ``auto`` passed over something a user would want to know of.

    That is: a better backend that is broken, or whose device was seen. Broken plugins of unknown priority
    count as the best a third party may have.
    """
    if not choice.request.auto:
        return False
    best = registry.THIRD_PARTY_PRIORITIES[-1]
    return any(
        (best if row.priority is None else row.priority) > choice.spec.priority
        and row.code is not Code.DISABLED
        and (row.code in _WORRYING or (bool(row.device) and not row.available))
        for row in rows
    )


_lock = threading.RLock()
_created: "dict[BackendSpec, Backend]" = {}


def _announce(choice: Choice, known: registry.Registry) -> None:
    _log.info("backend %s (%s)", choice.spec.name, choice.request)
    rows = known.rows()
    if worrying(choice, rows):
        _log.warning(
            "using backend %s, although a better one is broken or its device is here; "
            "DSV4CORE_BACKEND=%s silences this\n%s",
            choice.spec.name,
            choice.spec.name,
            format_table(rows),
        )


def _text(name: object, asked: str) -> str:
    if isinstance(name, str):
        return name
    raise UnknownBackendError(f"{asked} takes a name or names by comma ('cuda,cpu'), not {name!r}")


def _check_known(request: Request) -> None:
    known = registry.get_registry()
    names = known.names()
    for word in request.words:
        if word != "auto" and word not in names:
            near = env.nearest(word, names)
            suggestion = f" Did you mean '{near}'?" if near else ""
            raise UnknownBackendError(
                f"no backend is called '{word}' ({request}).{suggestion}\n{format_table(known.rows())}"
            )


def _refusal(request: Request, trace: Sequence[Verdict]) -> str:
    if len(trace) == 1:
        hint = f" ({trace[0].hint})" if trace[0].hint else ""
        return f"backend '{trace[0].name}' ({request}) cannot run here: {trace[0].reason}{hint}"
    return f"none of the backends asked for ({request}) can run here"
