"""The kernel that takes everything: the backend's own ops, which dequantise on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from dsv4core.linear import activation
from dsv4core.linear.kernel import LinearKernel, Problem
from dsv4core.linear.weight import QuantisedWeight, Weight

if TYPE_CHECKING:
    from dsv4core.ops import OpTable


class OpKernel(LinearKernel):
    """`linear` and `grouped_output_projection` of a backend: rows that do not see each other on the CPU."""

    name = "op"
    rank = 0

    def __init__(self, ops: OpTable) -> None:
        self.ops = ops

    def supports(self, problem: Problem) -> Literal[True] | str:
        """Everything."""
        return True

    def prepare(self, weight: Weight, problem: Problem) -> Any:
        """Stored weights as they are, but widened once where the op would do it at every call or cannot."""
        if isinstance(weight, Tensor):
            return weight.float() if problem.out == torch.float32 else weight
        if problem.groups and weight.format.id != "fp8_block":
            return weight.dequantised(torch.bfloat16 if problem.out == torch.bfloat16 else torch.float32)
        return weight

    def apply(self, problem: Problem, prepared: Any, x: Tensor, x_scales: Tensor | None) -> Tensor:
        """One call of the op; quantised activations as the bf16 values that they stand for."""
        weight, scales, factor = _parts(prepared)
        if problem.groups:
            return self.ops.grouped_output_projection(x, x_scales, weight, scales, groups=problem.groups)
        x = activation.rounded(x) if problem.quantise else x
        name = prepared.format.id if isinstance(prepared, QuantisedWeight) else "bf16"
        return self.ops.linear(x, weight, scales, factor, format=name, out_dtype=problem.out)


def _parts(weight: Weight) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if isinstance(weight, Tensor):
        return weight, None, None
    return weight.weight, weight.scales, weight.global_scale
