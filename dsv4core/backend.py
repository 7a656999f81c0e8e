"""A backend in use: its ops bound to the contract, and the layer class built on them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch

from dsv4core import env
from dsv4core.errors import DSV4CoreError, PluginError, WeightsError
from dsv4core.linear import LinearKernel, Linears
from dsv4core.offers import functions, kernels, offers
from dsv4core.ops import ABSENT, PORTABLE, OpTable
from dsv4core.probe import describe
from dsv4core.runtime import Workspace, autocasts

if TYPE_CHECKING:
    from dsv4core.attention import DeepseekV4Attention
    from dsv4core.config import AttentionConfig
    from dsv4core.parallel import TensorParallel
    from dsv4core.plugins import Plugin
    from dsv4core.registry import Registry
    from dsv4core.spec import BackendSpec
    from dsv4core.weights import AttentionWeights

log = logging.getLogger("dsv4core")


class Backend:
    """What `get_backend` returns: `name`, `device_type`, `ops` (an `OpTable`) and `attention(...)`.

    Wraps a provider: any object with `name`, `device_type` and a mapping `ops` from op name to callable (or
    `OpImpl`, which also says where it comes from). A provider may name a subclass of `DeepseekV4Attention` in
    `attention_class`; without one the layer runs on the ops alone. One that counts what it starts on a device
    in `launches` lets the conformance suite see that every op starts something.
    """

    def __init__(
        self,
        spec: BackendSpec,
        provider: Any,
        implementations: Mapping[str, Any],
        linear_kernels: Iterable[LinearKernel] = (),
    ) -> None:
        self.spec = spec
        self.name = spec.name
        self.device_type: str = provider.device_type
        self.provider = provider
        self.ops = OpTable(spec.name, implementations, env.read("DSV4CORE_FALLBACK"), self.device_type)
        self.linears = Linears(self.ops, linear_kernels)
        self.workspace = Workspace()

    def attention(
        self,
        config: AttentionConfig,
        layer: int,
        weights: AttentionWeights,
        parallel: TensorParallel | None = None,
    ) -> DeepseekV4Attention:
        """The attention of one layer; with `parallel` this rank's share of it, from its share of the weights.

        `config` describes the whole model either way. Raises ConfigError and WeightsError for what does not
        fit together, FallbackError where the backend lacks ops and fallbacks are forbidden.
        """
        from dsv4core.ops_attention import OpsAttention

        if autocasts(self.device_type):  # it would round products of weights as it would those of a call
            with torch.autocast(self.device_type, enabled=False):
                return self.attention(config, layer, weights, parallel)
        self.ops.require_all()
        layer_class = getattr(self.provider, "attention_class", None) or OpsAttention
        own = parallel.local(config) if parallel else config
        if own != config and weights.attn_sink.shape == (config.num_attention_heads,):
            raise WeightsError(
                f"the weights of layer {layer} are those of all {config.num_attention_heads} heads, and one"
                f" rank has {own.num_attention_heads}: type weights.sharded(parallel)"
            )
        try:
            built = layer_class(own, layer, weights, self)
        except WeightsError:
            weights.check_values()  # where values are what is wrong, it says whose
            raise
        if parallel is not None:
            built.parallel = parallel
        return built

    def __repr__(self) -> str:
        own = sum(1 for source in self.ops.provenance.values() if source not in (PORTABLE, ABSENT))
        return (
            f"<Backend {self.name} on {self.device_type}: {own} of {len(self.ops.provenance)} ops of its own>"
        )


def create_backend(spec: BackendSpec, known: Registry) -> Backend:
    """Build the provider of a spec through the hooks of a registry and bind its ops.

    Raises PluginError when the provider or its own plugin breaks the contract or two plugins claim one op.
    """
    try:
        provider = known.creator(spec.name)(spec=spec, settings=env.settings(spec.name))
    except DSV4CoreError:
        raise
    except (Exception, SystemExit) as error:  # a provider may do anything
        raise PluginError(
            f"backend {spec.name!r} cannot be created: {describe(error)};"
            f" DSV4CORE_DISABLE_BACKENDS={spec.name} does without it"
        ) from error
    missing = [a for a in ("name", "device_type", "ops") if not hasattr(provider, a)]
    if missing:
        raise PluginError(
            f"backend {spec.name!r}: {type(provider).__name__} lacks {', '.join(missing)};"
            " a provider has name, device_type and a mapping ops"
        )
    ops: Any = provider.ops
    if not isinstance(ops, Mapping):
        raise PluginError(
            f"backend {spec.name!r}: ops of {type(provider).__name__} is a {type(ops).__name__};"
            " a provider has name, device_type and a mapping ops"
        )
    implementations: dict[str, Any] = dict(cast(Mapping[str, Any], ops))
    for op, function in implementations.items():
        if not callable(getattr(function, "function", function)):
            raise PluginError(
                f"backend {spec.name!r}: op {op} is a {type(function).__name__}; a function is expected"
            )
    claimed: dict[str, Plugin] = {}
    for plugin, overrides in offers(known, spec, provider, "dsv4core_op_overrides", functions):
        twice = sorted(claimed.keys() & overrides.keys())
        if twice:
            raise PluginError(
                f"two plugins override {', '.join(twice)} of {spec.name!r}, '{claimed[twice[0]].name}' and"
                f" '{plugin.name}'; block one in DSV4CORE_PLUGINS"
            )
        claimed.update(dict.fromkeys(overrides, plugin))
        implementations.update(overrides)
    offered = offers(known, spec, provider, "dsv4core_linear_kernels", kernels)
    return Backend(spec, provider, implementations, [kernel for _, found in offered for kernel in found])
