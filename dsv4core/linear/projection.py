"""A projection of a layer: its chosen kernel, and what that kernel made of its weight."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from dsv4core.errors import DSV4CoreError, LinearError
from dsv4core.linear import activation
from dsv4core.linear.kernel import VARIABLE, Choice, LinearKernel, Problem, choose, ranked
from dsv4core.linear.op_kernel import OpKernel
from dsv4core.linear.weight import Weight, format_id, joined
from dsv4core.probe import describe

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
        self._widened: torch.dtype | None = None

    def widening(self, dtype: torch.dtype) -> Linears:
        """The same candidates, for whom quantised weights become matrices of a type first.

        What a weight was stored as still decides about its activations.
        """
        found = copy(self)
        found._widened = dtype
        return found

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

        Raises LinearError where no kernel takes it or the kernel cannot prepare it, WeightsError for values
        that are no numbers.
        """
        return self._linear(self._usable(weight), x, out, groups, quantise and _is_fp8(weight))

    def joined(
        self, *weights: Weight, x: torch.dtype, out: torch.dtype | None = None, quantise: bool = False
    ) -> Projection:
        """Several projections of the same input as one product where their storage allows it."""
        fp8 = [quantise and _is_fp8(weight) for weight in weights]
        parts = [self._usable(weight) for weight in weights]
        whole = joined(parts) if len(set(fp8)) == 1 else None
        if whole is not None:
            return self._linear(whole, x, out, 0, fp8[0])
        return SplitLinear(tuple(self._linear(w, x, out, 0, q) for w, q in zip(parts, fp8, strict=True)))

    def _usable(self, weight: Weight) -> Weight:
        if isinstance(weight, Tensor):
            return weight
        weight.check_values()
        return weight if self._widened is None else weight.dequantised(self._widened)

    def _linear(
        self, weight: Weight, x: torch.dtype, out: torch.dtype | None, groups: int, quantise: bool
    ) -> Linear:
        problem = Problem.of(weight, x, x if out is None else out, groups=groups, quantise=quantise)
        choice = choose(problem, self.kernels)
        try:
            return Linear(problem, choice, choice.kernel.prepare(weight, problem))
        except DSV4CoreError:
            raise
        except Exception as error:  # a library may do anything
            name = choice.kernel.name
            others = ",".join(kernel.name for kernel in self.kernels if kernel.name != name)
            hint = f"; {VARIABLE}={others} does without it" if others else ""
            raise LinearError(f"{name} cannot prepare {problem}: {describe(error)}{hint}") from error


def _is_fp8(weight: Weight) -> bool:
    return format_id(weight) == "fp8_block"
