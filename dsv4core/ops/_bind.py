"""Binding: one `torch.ops.dsv4core.<op>.<backend>` per implementation, and the table layers call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dsv4core.errors import FallbackError
from dsv4core.ops._contract import check_mode
from dsv4core.ops._op import OPS, Op
from dsv4core.runtime import autocasts

log = logging.getLogger("dsv4core")

PORTABLE = "portable"
ABSENT = "absent"
_library = torch.library.Library("dsv4core", "FRAGMENT")
# Defining an overload twice raises, so there is one per process and it looks its implementation up here.
_overloads: dict[tuple[str, str], BoundOp] = {}


@dataclass(frozen=True)
class OpImpl:
    """An implementation and where it comes from ("torch", "triton", "flashmla", ...)."""

    function: Callable[..., Any]
    provider: str


class BoundOp:
    """One op of one backend: a plain checked call in eager, the overload when compiling.

    Keyword parameters stay keywords; the result is what `Op.body`'s annotation says. `device_type` is where
    the implementation can reach tensors; empty: anywhere.
    """

    def __init__(
        self, op: Op, backend: str, implementation: Callable[..., Any], device_type: str = ""
    ) -> None:
        self.op = op
        self.backend = backend
        self.implementation = implementation
        self.device_type = device_type
        self.overload = _overload(self)
        self.__doc__ = op.body.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return self._from_torch(self.overload(*args, **kwargs))
        return self.run(*args, **kwargs)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Check the arguments, then call the implementation, under `torch.autocast` as without."""
        bound = self.checked(args, kwargs)
        kind = self.device_type or next(iter(bound.values())).device.type
        if not autocasts(kind):
            return self.call(bound)
        with torch.autocast(kind, enabled=False):
            return self.call(bound)

    def checked(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments by name, defaults filled in. Raises OpArgumentError for what breaks the contract."""
        bound = self.op.contract.bind(args, kwargs)
        self.op.contract.check(bound, check_mode(), self.device_type)
        return bound

    def call(self, bound: Mapping[str, Any]) -> Any:
        """Call the implementation the way the façade is declared: tensors first, the rest by keyword."""
        parameters = self.op.signature.parameters.values()
        positional = [bound[p.name] for p in parameters if p.kind is not p.KEYWORD_ONLY]
        keywords = {p.name: bound[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY}
        return self.implementation(*positional, **keywords)

    def _from_torch(self, result: Any) -> Any:
        if not self.op.optional_results:
            return result
        return tuple(
            None if i in self.op.optional_results and r.dim() == 1 and r.shape[0] == 0 else r
            for i, r in enumerate(result)
        )

    def to_torch(self, result: Any, anchor: Tensor) -> Any:
        """The overload's form of a result: None travels as an empty vector."""
        if not self.op.optional_results:
            return result
        return tuple(anchor.new_empty(0) if r is None else r for r in result)


def _overload(bound: BoundOp) -> Callable[..., Any]:
    op, key = bound.op, (bound.op.name, bound.backend)
    packet = getattr(torch.ops.dsv4core, op.name, None)
    if key in _overloads:
        _overloads[key] = bound
        return getattr(packet, bound.backend)
    _overloads[key] = bound
    name = f"{op.name}.{bound.backend}"
    _library.define(name + op.schema)  # pyright: ignore[reportUnknownMemberType]

    def kernel(*args: Any) -> Any:
        return _overloads[key].to_torch(_overloads[key].run(*args), args[0])

    def fake(*args: Any) -> Any:
        b = _overloads[key]
        arguments = op.contract.bind(args, {})
        parameters = op.signature.parameters.values()
        tensors = [arguments[p.name] for p in parameters if p.kind is not p.KEYWORD_ONLY]
        return b.to_torch(
            op.fake(*tensors, **{p.name: arguments[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY}),
            args[0],
        )

    _library.impl(name, kernel, "CompositeExplicitAutograd")  # pyright: ignore[reportUnknownMemberType]
    torch.library.register_fake(  # pyright: ignore[reportUnknownMemberType]
        f"dsv4core::{name}", fake, lib=_library
    )
    return getattr(getattr(torch.ops.dsv4core, op.name), bound.backend)


def _refusal(backend: str, *names: str) -> Callable[..., Any]:
    """What stands in for an op that a backend lacks where portable bodies are forbidden."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise FallbackError(
            f"backend {backend!r} has no implementation of {', '.join(names)} and"
            " DSV4CORE_FALLBACK=error forbids the portable ones;"
            " implement them or set DSV4CORE_FALLBACK=warn"
        )

    return refuse


class OpTable:
    """Ops of one backend, bound once; `table.sparse_decode(...)` calls it.

    `provenance` says for every op where it comes from; "portable" is a visible fallback. Where fallbacks are
    forbidden the op is "absent" instead: calling it raises FallbackError, the other ops work. The backend's
    own implementations refuse tensors that are not on its `device_type`: a kernel that takes addresses would
    end the process.
    """

    def __init__(
        self, backend: str, implementations: Mapping[str, Any], fallback: str, device_type: str = ""
    ) -> None:
        unknown = sorted(set(implementations) - set(OPS))
        if unknown:
            raise FallbackError(
                f"backend {backend!r} provides unknown ops {unknown}; the contract has: {', '.join(OPS)}"
            )
        missing = [name for name, op in OPS.items() if name not in implementations and not op.optional]
        if missing and fallback != "error":
            log.log(
                logging.WARNING if fallback == "warn" else logging.DEBUG,
                "%s: %d ops of its own, %d portable (%s)",
                backend, len(implementations), len(missing), ", ".join(missing),
            )  # fmt: skip
        self.backend = backend
        self._ops: dict[str, BoundOp] = {}
        provenance: dict[str, str] = {}
        for name, op in OPS.items():
            own = implementations.get(name)
            if own is None and fallback == "error":
                self._ops[name], provenance[name] = BoundOp(op, ABSENT, _refusal(backend, name)), ABSENT
            elif own is None:
                self._ops[name], provenance[name] = BoundOp(op, PORTABLE, op.body), PORTABLE
            else:
                implementation = own if isinstance(own, OpImpl) else OpImpl(own, backend)
                self._ops[name] = BoundOp(op, backend, implementation.function, device_type)
                provenance[name] = implementation.provider
        self.provenance: Mapping[str, str] = provenance

    def brings(self, name: str) -> bool:
        """Whether the backend has code of its own for an op: a layer takes an optional one only then."""
        bound = self._ops[name]
        return bound.backend not in (PORTABLE, ABSENT) and bound.implementation is not bound.op.body

    def require_all(self) -> None:
        """Raise FallbackError if an op is absent: a layer refuses when it is built, not at its first step.

        Optional ops may be absent.
        """
        absent = [n for n, source in self.provenance.items() if source == ABSENT and not OPS[n].optional]
        if absent:
            _refusal(self.backend, *absent)()

    def __getattr__(self, name: str) -> BoundOp:
        try:
            return self.__dict__["_ops"][name]
        except KeyError:
            raise AttributeError(f"no op is called {name!r}; the contract has: {', '.join(OPS)}") from None

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._ops]
