"""A projection of a layer: its chosen kernel, and what that kernel made of its weight."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from dsv4core.errors import LinearError
from dsv4core.linear import activation
from dsv4core.linear.kernel import Choice, LinearKernel, Problem, choose, ranked
from dsv4core.linear.op_kernel import OpKernel
from dsv4core.linear.weight import Weight, joined

if TYPE_CHECKING:
    from dsv4core.ops import OpTable


@dataclass(frozen=True)
class Linear:
    """x @ weight^T by one kernel; `choice` says why that one."""

    problem: Problem
    choice: Choice
    prepared: Any

    def __call__(self, x: Tensor, x_scales: Tensor | None = None) -> Tensor:
        """The product. Shapes: x [T, in] -> [T, out] in `problem.out`; grouped as `LinearKernel.apply`."""
        wanted = self.problem
        if x.dtype != wanted.x or x.device != wanted.device:
            raise LinearError(
                f"{wanted} multiplies {wanted.x} on {wanted.device}, x is {x.dtype} on {x.device}; type"
                f" x.to({str(wanted.device)!r}, {wanted.x}), or build the projection for such activations"
            )
        x_scales = None if x_scales is None else activation.reachable(x_scales)
        return self.choice.kernel.apply(wanted, self.prepared, activation.reachable(x), x_scales)


@dataclass(frozen=True)
class SplitLinear:
    """Projections of the same input that cannot be one matrix; called like one."""

    parts: tuple[Linear, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """Their outputs side by side. Shapes: x [T, in] -> [T, sum of out]."""
        return torch.cat([part(x) for part in self.parts], dim=1)


Projection: TypeAlias = Linear | SplitLinear


class Linears:
    """What makes the projections of a backend: its candidates, best first."""

    def __init__(self, ops: OpTable, kernels: Iterable[LinearKernel] = ()) -> None:
        self.kernels = ranked([*kernels, OpKernel(ops)])

    def linear(
        self,
        weight: Weight,
        x: torch.dtype,
        *,
        out: torch.dtype | None = None,
        groups: int = 0,
        quantise: bool = False,
    ) -> Linear:
        """One projection of activations of type `x`; `quantise` asks for fp8 activations with fp8 weights.

        Raises LinearError where no kernel takes it.
        """
        problem = Problem.of(weight, x, x if out is None else out, groups=groups)
        problem = replace(problem, quantise=quantise and problem.format == "fp8_block")
        choice = choose(problem, self.kernels)
        return Linear(problem, choice, choice.kernel.prepare(weight, problem))

    def joined(
        self, *weights: Weight, x: torch.dtype, out: torch.dtype | None = None, quantise: bool = False
    ) -> Projection:
        """Several projections of the same input as one product where their storage allows it."""
        whole = joined(weights)
        if whole is not None:
            return self.linear(whole, x, out=out, quantise=quantise)
        return SplitLinear(tuple(self.linear(w, x, out=out, quantise=quantise) for w in weights))
