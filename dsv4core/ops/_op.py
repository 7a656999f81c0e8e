"""How an op is declared: schema, contract of every argument, fake, portable body and tolerance, once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dsv4core.ops._contract import Contract, TensorSpec

Body = Callable[..., Any]
Values = Callable[[Mapping[str, Any], Mapping[str, int]], None]


@dataclass(frozen=True)
class Tolerance:
    """How far a backend's result may be from the contract; `docs/arithmetic.md` lists the bounds."""

    kind: str  # "exact" or the name of a bound
    bound: float = 0.0
    reason: str = ""


EXACT = Tolerance("exact", 0.0, "reaches a cache byte, a list or a query: CA1 pins every rounding")


@dataclass(frozen=True)
class Op:
    """One op of the contract. `body` is the portable torch implementation and reads as the specification.

    An `optional` op is two others in one: a backend that lacks it lacks nothing, and a layer takes it only
    where its class wants it and the backend brings its own.
    """

    name: str
    body: Body
    fake: Body
    tensors: Mapping[str, TensorSpec]
    mutates: tuple[str, ...]
    tolerance: Tolerance
    values: Values | None
    optional_results: tuple[int, ...] = ()
    minimum: Mapping[str, int] = field(default_factory=dict[str, int])
    optional: bool = False
    signature: inspect.Signature = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "signature", inspect.signature(self.body, eval_str=True))

    @cached_property
    def contract(self) -> Contract:
        """Shape, dtype, device and stride rules of the arguments."""
        return Contract(self.name, self.tensors, self.signature, self.values, self.mutates, self.minimum)

    @cached_property
    def schema(self) -> str:
        """The torch schema behind the name, e.g. `(Tensor qr, ...) -> (Tensor, Tensor)`; all positional."""

        def stand_in() -> None: ...

        parameters = [p.replace(kind=p.POSITIONAL_OR_KEYWORD) for p in self.signature.parameters.values()]
        result = self.signature.return_annotation
        if self.optional_results:  # torch has no optional results: None travels as an empty vector
            result = tuple[(Tensor,) * len(result.__args__)]  # type: ignore[misc]
        stand_in.__signature__ = self.signature.replace(  # type: ignore[attr-defined]
            parameters=parameters, return_annotation=result
        )
        return torch.library.infer_schema(  # pyright: ignore[reportUnknownMemberType]
            stand_in, mutates_args=self.mutates
        )


OPS: dict[str, Op] = {}


def op(
    *,
    fake: Body,
    tensors: Mapping[str, TensorSpec],
    mutates: tuple[str, ...] = (),
    tolerance: Tolerance = EXACT,
    values: Values | None = None,
    optional_results: tuple[int, ...] = (),
    minimum: Mapping[str, int] | None = None,
    optional: bool = False,
) -> Callable[[Body], Body]:
    """Declare the decorated portable body as the op of its name.

    `fake` gives empty results of the right shapes; `tensors` the contract of each tensor argument in order;
    `values` checks numbers inside tensors (checked mode only); `optional_results` are positions that may be
    None; `minimum` replaces the usual lower bounds of integer parameters; `optional` says that no backend
    needs it.
    """

    def declare(body: Body) -> Body:
        OPS[body.__name__] = Op(
            body.__name__, body, fake, tensors, mutates, tolerance, values, optional_results, minimum or {},
            optional,
        )  # fmt: skip
        return body

    return declare
