"""DeepSeek-V4 attention over paged byte caches: one contract, one layer, a plugin per device.

Names are resolved on first touch, so that ``import dsv4core`` imports neither torch nor pydantic.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsv4core.attention import DeepseekV4Attention
    from dsv4core.backend import Backend
    from dsv4core.cache import Admission, CacheSpec, PagedCache, RequestExport, cache_specs
    from dsv4core.config import AttentionConfig, LayerConfig, YarnConfig
    from dsv4core.errors import (
        BackendError,
        BackendUnavailableError,
        CacheError,
        ConfigError,
        DSV4CoreError,
        DuplicateBackendError,
        FallbackError,
        LayoutError,
        LinearError,
        OpArgumentError,
        OutOfPagesError,
        PluginError,
        UnknownBackendError,
        UnknownRequestError,
        WeightsError,
    )
    from dsv4core.hookspecs import hookimpl
    from dsv4core.layout import CacheLayout, get_layout, layouts
    from dsv4core.parallel import TensorParallel
    from dsv4core.plan import BatchPlan, Limits
    from dsv4core.selection import backends, get_backend, use
    from dsv4core.spec import Availability, BackendRow, BackendSpec, Code, Deviation, Requirement
    from dsv4core.weights import AttentionWeights

    __version__: str

__all__ = [
    "Admission",
    "AttentionConfig",
    "AttentionWeights",
    "Availability",
    "Backend",
    "BackendError",
    "BackendRow",
    "BackendSpec",
    "BackendUnavailableError",
    "BatchPlan",
    "CacheError",
    "CacheLayout",
    "CacheSpec",
    "Code",
    "ConfigError",
    "DSV4CoreError",
    "DeepseekV4Attention",
    "Deviation",
    "DuplicateBackendError",
    "FallbackError",
    "LayerConfig",
    "LayoutError",
    "Limits",
    "LinearError",
    "OpArgumentError",
    "OutOfPagesError",
    "PagedCache",
    "PluginError",
    "RequestExport",
    "Requirement",
    "TensorParallel",
    "UnknownBackendError",
    "UnknownRequestError",
    "WeightsError",
    "YarnConfig",
    "__version__",
    "backends",
    "cache_specs",
    "get_backend",
    "get_layout",
    "hookimpl",
    "layouts",
    "use",
]

_MODULES = {
    "attention": ("DeepseekV4Attention",),
    "backend": ("Backend",),
    "cache": ("Admission", "CacheSpec", "PagedCache", "RequestExport", "cache_specs"),
    "config": ("AttentionConfig", "LayerConfig", "YarnConfig"),
    "errors": tuple(name for name in __all__ if name.endswith("Error")),
    "hookspecs": ("hookimpl",),
    "layout": ("CacheLayout", "get_layout", "layouts"),
    "parallel": ("TensorParallel",),
    "plan": ("BatchPlan", "Limits"),
    "selection": ("backends", "get_backend", "use"),
    "spec": ("Availability", "BackendRow", "BackendSpec", "Code", "Deviation", "Requirement"),
    "weights": ("AttentionWeights",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import the module a public name lives in, on first touch."""
    if name == "__version__":
        from dsv4core.probe import installed_version

        value: Any = installed_version("dsv4core") or "0+unknown"
    elif name in _HOME:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    else:
        raise AttributeError(
            f"module 'dsv4core' has no attribute '{name}'; public names: {', '.join(__all__)}"
        )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
