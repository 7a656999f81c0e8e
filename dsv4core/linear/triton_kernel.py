"""Stored weights dequantised inside a Triton kernel: memory is read once, at the width of the codes."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from dsv4core.linear.kernel import LinearKernel, Problem
from dsv4core.linear.weight import QuantisedWeight, Weight
from dsv4core.numerics import ue8m0

GROUP = 128  # inputs of one scale of quantised activations
ROWS = 64  # the fewest outputs of a program, which must not reach over two groups


class TritonLinear(LinearKernel):
    """`dsv4core.kernels.triton.quantised_linear`; also the grouped projection, bf16 and fp8.

    A backend whose tensors Triton can reach offers it; it imports triton when a weight is prepared.
    """

    name = "triton"
    rank = 50

    def supports(self, problem: Problem) -> Literal[True] | str:
        """Quantised weights of whole groups, activations in bf16 or (with fp8 blocks) in fp8."""
        if find_spec("triton") is None:
            return "triton is not installed"
        if problem.format == "bf16":
            return "the weight is not quantised: plain products are the op's"
        fp8 = problem.quantise or problem.x == torch.float8_e4m3fn
        if problem.x not in (torch.bfloat16, torch.float8_e4m3fn):
            return f"activations are {problem.x}, it multiplies bf16 and float8_e4m3fn"
        if fp8 and (problem.format != "fp8_block" or problem.inputs % GROUP):
            return f"fp8 activations go with fp8_block weights of whole blocks, not {problem}"
        if problem.format != "fp8_block" and problem.inputs % 32:
            return f"{problem.inputs} inputs are not whole groups of 32"
        if problem.groups and problem.rows // problem.groups % ROWS:
            return f"{problem.rows // problem.groups} outputs a group are no multiple of {ROWS}"
        return True

    def prepare(self, weight: Weight, problem: Problem) -> Any:
        """The weight itself, its codes contiguous."""
        assert isinstance(weight, QuantisedWeight)
        import_module("dsv4core.kernels.triton.quantised_linear")  # fails here, not at the first step
        return QuantisedWeight(weight.weight.contiguous(), weight.scales.contiguous(), weight.global_scale)

    def apply(self, problem: Problem, prepared: Any, x: Tensor, x_scales: Tensor | None) -> Tensor:
        """One launch, two where the sum is split over programs, one more for fp8 activations."""
        from dsv4core.kernels.triton.quantise_activation import quantise_activation
        from dsv4core.kernels.triton.quantised_linear import quantised_linear

        groups = max(problem.groups, 1)
        if problem.quantise:
            x, x_scales = quantise_activation(x)
        elif x_scales is not None and x_scales.dtype == torch.int32:  # four UE8M0 bytes a word
            x_scales = ue8m0.exp2(ue8m0.byte_exponent(x_scales.contiguous().view(torch.uint8)))
        out = quantised_linear(
            x.reshape(x.shape[0], groups, problem.inputs),
            None if x_scales is None else x_scales.reshape(x.shape[0], groups, -1),
            prepared.weight,
            prepared.scales,
            prepared.global_scale,
            format=problem.format,
            out_dtype=problem.out,
            groups=groups,
        )
        return out.view(x.shape[0], groups, -1) if problem.groups else out
