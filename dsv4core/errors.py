"""Every exception dsv4core raises; standard library only, so that it can be imported anywhere.

Messages follow one pattern: what was asked, what is there, why that does not fit, what to type instead.
"""


class DSV4CoreError(Exception):
    """Base of every error this package raises on purpose."""


class BackendError(DSV4CoreError):
    """Something about finding, choosing or building a backend."""


class UnknownBackendError(BackendError):
    """A name was asked for that no installed plugin provides."""


class BackendUnavailableError(BackendError):
    """A known backend cannot run here; the message holds the table of reasons."""


class DuplicateBackendError(BackendError):
    """Two plugins claim one backend name; the first keeps it."""


class PluginError(BackendError):
    """A plugin breaks the plugin contract: a bad name, an unknown hook, a wrong result."""


class FallbackError(BackendError):
    """An op has no kernel of the backend and ``DSV4CORE_FALLBACK=error`` forbids the portable body."""


class LayoutError(DSV4CoreError, ValueError):
    """A cache layout is unknown, inconsistent or does not fit the tensor it is used on."""


class ConfigError(DSV4CoreError, ValueError):
    """A model description is incomplete or contradicts itself."""


class LinearError(BackendError):
    """No linear kernel takes a projection, or ``DSV4CORE_LINEAR`` names one that is not there."""


class WeightsError(DSV4CoreError, ValueError):
    """Tensors of a checkpoint are missing, superfluous or have the wrong shape or dtype."""


class CacheError(DSV4CoreError):
    """The paged cache was asked for something it cannot do; nothing was changed."""


class OutOfPagesError(CacheError):
    """A step needs more pages than are free; nothing was changed."""


class UnknownRequestError(CacheError, KeyError):
    """A request id that the cache does not hold."""

    def __str__(self) -> str:
        """Return the message as written, without the quotes ``KeyError`` adds."""
        return str(self.args[0]) if self.args else "unknown request"


class OpArgumentError(DSV4CoreError, ValueError):
    """An argument of an op breaks the op's contract.

    The parts are kept as attributes: ``op``, ``argument``, ``expected``, ``got``.
    """

    def __init__(self, op: str, argument: str, expected: str, got: str) -> None:
        super().__init__(f"{op}: argument '{argument}' must be {expected}, got {got}")
        self.op = op
        self.argument = argument
        self.expected = expected
        self.got = got

    def __reduce__(self) -> tuple[type["OpArgumentError"], tuple[str, str, str, str]]:
        """Pickle by the four parts, since the message is built from them."""
        return type(self), (self.op, self.argument, self.expected, self.got)
