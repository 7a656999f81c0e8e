"""NVFP4 projections on the native library: memory is read at the width of the codes."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from dsv4core.linear import LinearKernel, Problem, QuantisedWeight, Weight
from dsv4core_cpu.native import Native
from dsv4core_cpu.ops._call import function, threads

OUTPUTS = 16  # that lie next to each other in the repacked matrix
PANEL = 64  # outputs with the same inputs at least, where there are groups
INPUTS = 128  # of one step of the product


class NativeLinear(LinearKernel):
    """Codes dequantised on the way into the product; no row of a result sees another.

    `native` is None where the library is switched off or cannot be built: then it takes nothing.
    """

    name = "native"
    rank = 40

    def __init__(self, native: Native | None) -> None:
        self.run = native and function(native.library, "dsv4_nvfp4_linear", "pl pl i ppp llll i")

    def supports(self, problem: Problem) -> Literal[True] | str:
        """NVFP4 with bf16 activations."""
        if problem.format != "nvfp4":
            return "it takes nvfp4 only"
        if self.run is None:
            return "the native kernels are switched off or were not built"
        if problem.x != torch.bfloat16:
            return f"activations are {problem.x}, it multiplies bf16"
        if problem.rows % OUTPUTS or problem.inputs % INPUTS:
            size = f"[{problem.rows}, {problem.inputs}]"
            return f"{size} is not made of {OUTPUTS} outputs by {INPUTS} inputs"
        if problem.groups and problem.rows // problem.groups % PANEL:
            return f"{problem.rows // problem.groups} outputs a group are no multiple of {PANEL}"
        return True

    def prepare(self, weight: Weight, problem: Problem) -> Any:
        """Codes and scales of 16 outputs next to each other, the scales in bf16, and the factor."""
        assert isinstance(weight, QuantisedWeight) and weight.global_scale is not None
        return _packed(weight.weight), _packed(weight.scales.to(torch.bfloat16)), weight.global_scale

    def apply(self, problem: Problem, prepared: Any, x: Tensor, x_scales: Tensor | None) -> Tensor:
        """One call, threads over outputs."""
        codes, scales, factor = prepared
        groups = max(problem.groups, 1)
        x = x.reshape(x.shape[0], groups * problem.inputs)
        out = x.new_empty(x.shape[0], problem.rows, dtype=problem.out)
        self.run(
            x.data_ptr(), x.stride(0), out.data_ptr(), problem.rows, int(problem.out == torch.float32),
            codes.data_ptr(), scales.data_ptr(), factor.data_ptr(), x.shape[0], problem.rows, problem.inputs,
            problem.rows // groups, threads(),
        )  # fmt: skip
        return out.view(-1, groups, problem.rows // groups) if problem.groups else out


def _packed(part: Tensor) -> Tensor:
    """Shapes: [out, n] -> [out / 16, n, 16]."""
    return part.view(-1, OUTPUTS, part.shape[1]).transpose(1, 2).contiguous()
