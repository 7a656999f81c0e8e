"""What the core may know about a backend before it imports one line of it.

Standard library only: discovery loads this module and nothing heavier.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from dsv4core.errors import PluginError

API_VERSION = 1
"""Version of the plugin interface this core speaks."""

SUPPORTED_API_VERSIONS = frozenset({1})
"""Versions a plugin may declare: the current one and the one before, once there is one."""

RESERVED_NAMES = frozenset({"auto", "default", "portable"})
"""Words with a meaning of their own: a choice, torch's overload name, the provenance of portable bodies."""

Depth = Literal["static", "device"]
"""How far a probe looks: ``static`` imports no torch, ``device`` may."""

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class Code(str, Enum):
    """Why a backend can or cannot run, for programs; people read the reason."""

    OK = "ok"
    NOT_INSTALLED = "not_installed"
    VERSION_CONFLICT = "version_conflict"
    IMPORT_FAILED = "import_failed"
    NO_DEVICE = "no_device"
    UNSUPPORTED_DEVICE = "unsupported_device"
    NO_OPS = "no_ops"
    PLUGIN_BROKEN = "plugin_broken"
    API_MISMATCH = "api_mismatch"
    DISABLED = "disabled"


@dataclass(frozen=True, slots=True)
class Requirement:
    """A module a backend needs, and the distribution that brings it.

    ``distribution`` names what the version is read from (the module's own name when empty); ``version`` is a
    specifier such as ``>=2.8``, empty for any; ``hint`` says what to type when the requirement is not met.
    """

    module: str
    distribution: str = ""
    version: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Availability:
    """The answer of a probe: ok or not, a code for programs, a reason and a hint for people.

    ``device`` says what hardware the probe saw, even if it cannot be used; empty when it saw or sought none.
    ``by_name``: it can run, but not on a device of its own, so ``auto`` passes over it.
    """

    ok: bool
    code: Code
    reason: str = ""
    hint: str = ""
    device: str = ""
    by_name: bool = False

    @classmethod
    def available(cls, reason: str = "available", device: str = "", by_name: bool = False) -> "Availability":
        """Answer that the backend can run."""
        return cls(True, Code.OK, reason, "", device, by_name)

    @classmethod
    def missing(cls, code: Code, reason: str, hint: str = "", device: str = "") -> "Availability":
        """Answer that the backend cannot run, and why."""
        return cls(False, code, reason, hint, device)


@dataclass(frozen=True, slots=True)
class BackendSpec:
    """A backend as data: who it is, what it needs, where its code is.

    ``name`` becomes a torch overload name, hence ``[a-z][a-z0-9_]*``. ``device_type`` is torch's and never
    used to select: two backends may share one. The highest ``priority`` that can run wins under ``auto``;
    third parties stay within 1..99. ``factory`` is ``"module:attribute"``, or empty while there are no ops.
    ``settings`` names what it reads of ``DSV4CORE_<NAME>_*``, in lower case, so that a mistyped one is warned
    about; None says nothing and warns about nothing.

    Raises:
        PluginError: a field is of another type, or the name or the factory is not well formed.
    """

    name: str
    device_type: str
    priority: int
    factory: str
    requires: tuple[Requirement, ...] = ()
    extra: str | None = None
    layouts: tuple[str, ...] = ()
    features: frozenset[str] = frozenset()
    api_version: int = API_VERSION
    settings: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse what could not be registered later, or would fail where all backends are looked at."""
        for field, (kind, inside, form) in _FORMS.items():
            value: Any = getattr(self, field)
            right = isinstance(value, kind) and (not inside or all(isinstance(v, inside) for v in value))
            if not right and not (value is None and form.endswith("None")):
                raise PluginError(f"BackendSpec {self.name!r}: {field} is {value!r}; it must be {form}")
        if not _NAME.fullmatch(self.name) or self.name in RESERVED_NAMES:
            raise PluginError(
                f"'{self.name}' cannot name a backend: it becomes a torch overload name, so it must match "
                f"{_NAME.pattern} and be none of {', '.join(sorted(RESERVED_NAMES))}"
            )
        if self.factory and not _FACTORY.fullmatch(self.factory):
            raise PluginError(
                f"backend '{self.name}': factory '{self.factory}' is not of the form 'module:attribute'"
            )


_FORMS: Mapping[str, tuple[type, type | None, str]] = {
    "name": (str, None, "a string"),
    "device_type": (str, None, "a string"),
    "priority": (int, None, "a whole number"),
    "factory": (str, None, "a string"),
    "requires": (tuple, Requirement, "a tuple of Requirement"),
    "extra": (str, None, "a string or None"),
    "layouts": (tuple, str, "a tuple of strings"),
    "features": (frozenset, str, "a frozenset of strings"),
    "api_version": (int, None, "a whole number"),
    "settings": (tuple, str, "a tuple of strings or None"),
}
"""Type of each field, of what is in it, and both in words; lists would leave a spec without a hash."""


@dataclass(frozen=True, slots=True)
class BackendRow:
    """One line of ``dsv4core.backends()``: a backend, or a plugin that could not become one."""

    name: str
    available: bool
    code: Code
    reason: str
    hint: str
    depth: Depth
    device: str = ""
    device_type: str | None = None
    priority: int | None = None
    plugin: str = ""
    distribution: str = ""
    version: str = ""

    def as_dict(self) -> Mapping[str, object]:
        """Return the row as plain JSON values."""
        row: dict[str, object] = {name: getattr(self, name) for name in self.__slots__}
        return {**row, "code": self.code.value}


@dataclass(frozen=True, slots=True)
class Deviation:
    """A declared difference from the contract: which conformance cases fail on a backend, and why.

    ``notimpl``: possible but not done; ``notyet``: something upstream must move first; ``never``: do not try.
    ``raises`` names the expected exception, ``until`` a version or date after which the declaration lapses.
    """

    case: str
    kind: Literal["notimpl", "notyet", "never"]
    reason: str
    devices: tuple[str, ...] = ()
    raises: str | None = None
    url: str | None = None
    until: str | None = None
