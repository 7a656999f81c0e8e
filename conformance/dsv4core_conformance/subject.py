"""The backend under test: opened by name, on a device, with what it claims and where each op comes from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from dsv4core import AttentionConfig, AttentionWeights, PagedCache
from dsv4core.backend import Backend, create_backend
from dsv4core.errors import BackendError, BackendUnavailableError
from dsv4core.layout import layouts
from dsv4core.ops import ABSENT, OPS, PORTABLE
from dsv4core.registry import get_registry
from dsv4core.runtime import usable
from dsv4core.selection import format_table, get_backend
from dsv4core.spec import BackendSpec, Code
from dsv4core_conformance.case import Case, NotRun, Unclaimed
from dsv4core_conformance.check import Checked, judge
from dsv4core_conformance.contracts import CONTRACTS
from dsv4core_conformance.hosts import Moved, cloned

if TYPE_CHECKING:
    from dsv4core.attention import DeepseekV4Attention

Tier = Literal["device", "foreign-device", "interpreter", "portable"]

PORTABLE_BODIES = "portable_bodies"
"""Feature of the backend whose own ops the core's portable bodies are; nobody else earns a tick with them."""

LAYER_OPS = tuple(
    op
    for op, contract in CONTRACTS.items()
    if op not in ("indexer_logits", "indexer_topk", "quantize_and_insert_k_cache") and not contract.optional
)
"""Ops that a whole layer goes through, whoever made it."""


@dataclass
class Subject:
    """What a case is given: `call` and `check` for single ops, `attention` and `cache` for whole layers.

    `errors` collects the worst error of the running case by op, in units of its contract.
    """

    backend: Backend
    device: torch.device
    tier: Tier
    features: frozenset[str]
    layouts: frozenset[str]
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The backend's name."""
        return self.backend.name

    def call(self, op: str, arguments: Mapping[str, Any]) -> list[Tensor | None]:
        """Call one op with host tensors; results come back to the host, written arguments are updated there.

        On a device the whole storages travel, so strides, offsets and neighbouring bytes are what they were.
        """
        function = getattr(self.backend.ops, op)
        if self.device.type == "cpu":
            result = function(**arguments)
        else:
            moved = Moved(arguments, self.device)
            result = function(**moved.arguments)
            moved.back()
        parts = list(result) if isinstance(result, tuple) else [] if result is None else [result]
        return [part.cpu() if isinstance(part, Tensor) else None for part in parts]

    def check(self, op: str, arguments: Mapping[str, Any]) -> Checked:
        """Call one op and hold against the reference what it returned and every byte it could have written.

        Raises `Mismatch`. The arguments are left as the backend left them.
        """
        before = cloned(arguments)
        results = self.call(op, arguments)
        error = judge(op, before, arguments, results)
        self.errors[op] = max(error, self.errors.get(op, 0.0))
        return Checked(results, error)

    def attention(
        self, config: AttentionConfig, layer: int, weights: AttentionWeights
    ) -> DeepseekV4Attention:
        """A whole layer of this backend on its device."""
        return self.backend.attention(config, layer, weights.to(self.device))

    def cache(self, config: AttentionConfig, layer: int, capacity: int = 2048, **limits: Any) -> PagedCache:
        """An empty cache for one layer on the backend's device."""
        return PagedCache.allocate(config, [layer], capacity, self.device, **limits)

    def need_device(self, what: str) -> None:
        """Raise `NotRun` unless this run is on a device with streams and graphs."""
        if self.device.type == "cpu":
            raise NotRun(f"needs {what}; this run is on a CPU")

    def need_feature(self, feature: str) -> None:
        """Raise `Unclaimed` unless the backend claims a feature."""
        if feature not in self.features:
            raise Unclaimed(f"{feature}, which {self.name} does not claim")

    def not_own(self, case: Case) -> tuple[str, ...]:
        """Ops of a case that are not the backend's own."""
        return tuple(op for op in case.ops if op not in self.own_ops)

    def unclaimed(self, case: Case) -> tuple[str, ...]:
        """Layouts and features that a case needs and the backend does not claim."""
        return (*sorted(set(case.layouts) - self.layouts), *sorted(case.needs - self.features))

    @property
    def own_ops(self) -> frozenset[str]:
        """Ops that count as this backend's own.

        The core's portable body counts for the backend that declares it as its own and, where it is a plain
        matmul through torch, for everybody.
        """
        return frozenset(op for op in OPS if self._owns(op))

    def _owns(self, op: str) -> bool:
        if self.backend.ops.provenance[op] in (PORTABLE, ABSENT):
            return False
        implementation = getattr(self.backend.ops, op).implementation
        body = implementation is OPS[op].body
        return not body or PORTABLE_BODIES in self.features or CONTRACTS[op].kind == "matmul"


def open_subject(name: str, device: str | None = None) -> Subject:
    """The backend `name`, on its own device, on `device`, or on the CPU where kernels are interpreted.

    Raises UnknownBackendError or BackendUnavailableError with the reasons and the table of backends, and
    BackendError for a device that torch does not have or a layout that there is not.
    """
    spec = get_registry().specs.get(name)
    interpreted = os.environ.get("TRITON_INTERPRET") == "1" and spec is not None and spec.device_type != "cpu"
    if spec is None or (device is None and not interpreted):
        backend = get_backend(name)
        where = usable(device) if device else torch.device(backend.device_type)
    else:
        where = usable(device or "cpu")
        backend = _elsewhere(name, spec, where)
    known = {layout.id for layout in layouts()}
    unknown = [layout for layout in backend.spec.layouts if layout not in known]
    if unknown:
        raise BackendError(
            f"backend '{name}' claims layouts that there are not: {', '.join(unknown)}; known are "
            f"{', '.join(sorted(known))}: mend `layouts` of its BackendSpec"
        )
    return Subject(
        backend,
        where,
        _tier(backend, where, interpreted),
        backend.spec.features,
        frozenset(backend.spec.layouts),
    )


def _elsewhere(name: str, spec: BackendSpec, where: torch.device) -> Backend:
    """The backend on a device that is not its own: its own need not be there, everything else must be."""
    answer = get_registry().probe(name, "device")
    if answer.ok and where.type == spec.device_type:
        return get_backend(name)
    if not answer.ok and answer.code not in (Code.NO_DEVICE, Code.UNSUPPORTED_DEVICE):
        table = format_table(get_registry().rows())
        raise BackendUnavailableError(
            f"backend '{name}' cannot run on {where}: {answer.reason} ({answer.hint})\n{table}"
        )
    return create_backend(spec, get_registry())


def _tier(backend: Backend, where: torch.device, interpreted: bool) -> Tier:
    """One vendor's devices may go by another's name in torch, so the backend has to find its own here too."""
    if interpreted:
        return "interpreter"
    own = where.type == backend.spec.device_type and get_registry().probe(backend.name, "device").ok
    return "device" if own else "foreign-device"


def others(name: str) -> list[Subject]:
    """Every other backend that can run here on its own device, for comparisons between backends."""
    found: list[Subject] = []
    for row in get_registry().rows("device"):
        if row.available and row.name != name:
            found.append(open_subject(row.name))
    return found


__all__ = ["LAYER_OPS", "PORTABLE_BODIES", "Subject", "Tier", "open_subject", "others"]
