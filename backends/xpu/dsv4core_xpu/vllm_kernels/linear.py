"""Products with stored fp8 weights through `fp8_gemm_w8a16` (oneDNN)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from dsv4core.linear import LinearKernel, Problem, QuantisedWeight, Weight
from dsv4core.numerics.block_fp8 import scale_values

BLOCK = 128


class BlockProduct(LinearKernel):
    """bf16 activations by e4m3 weights with a scale a block of 128 x 128. Not run on hardware.

    `function` is the operator that passed its check, or None and `reason` says why there is none.
    """

    name = "vllm_xpu_kernels"
    rank = 60

    def __init__(self, function: Callable[..., Tensor] | None, reason: str = "") -> None:
        self.function = function
        self.reason = reason

    def supports(self, problem: Problem) -> Literal[True] | str:
        """Whole blocks, two at least along the inputs: one row of scales reads as scales of channels."""
        if self.function is None:
            return self.reason
        if problem.format != "fp8_block" or problem.groups or problem.quantise:
            return f"it multiplies fp8_block weights by bf16 activations, not {problem}"
        if problem.x != torch.bfloat16 or problem.out != torch.bfloat16:
            return f"it takes and gives bf16, not {problem.x} and {problem.out}"
        if problem.rows % BLOCK or problem.inputs % BLOCK or problem.inputs < 2 * BLOCK:
            return f"it needs whole blocks of {BLOCK}, two at least along the inputs, not {problem}"
        return True

    def prepare(self, weight: Weight, problem: Problem) -> Any:
        """Codes [in, out] as they lie, f32 scales [in / 128, out / 128]."""
        assert isinstance(weight, QuantisedWeight)
        return weight.weight.contiguous().t(), scale_values(weight.scales).t().contiguous()

    def apply(self, problem: Problem, prepared: Any, x: Tensor, x_scales: Tensor | None) -> Tensor:
        """One product."""
        assert self.function is not None
        if not x.shape[0]:
            return x.new_empty(0, problem.rows)
        return self.function(x.contiguous(), *prepared, None)
