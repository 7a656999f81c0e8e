"""Stored weights dequantised inside a Triton kernel: memory is read once, at the width of the codes."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv4core.linear import activation
from dsv4core.linear.kernel import LinearKernel, Problem
from dsv4core.linear.weight import QuantisedWeight, Weight
from dsv4core.numerics import ue8m0
from dsv4core.probe import module_exists

ROWS = 64  # outputs of a program, which must not reach over two groups
DENSE_ABOVE = 128  # tokens; beyond, a bf16 copy made for the call and torch's product are faster
MOST_TILES = 256  # of a product whose sum is split


def capturing(device: torch.device) -> int | None:
    """0 outside a capture of the current stream, None inside: not every torch says which one it is."""
    inside = getattr(torch.get_device_module(device), "is_current_stream_capturing", None)
    return None if inside is not None and inside() else 0


class Arrivals:
    """Zeros for the parts of split sums to count on, one set a stream: a launch leaves zeros to the next one.

    `capture` numbers the capture that the current stream is in. The first call inside a capture makes zeros
    that the graph sets anew in every replay; where there is no number every call there makes its own.
    """

    def __init__(self, capture: Callable[[torch.device], int | None] = capturing) -> None:
        self._capture = capture
        self._held: dict[tuple[torch.device, int], tuple[int, Tensor]] = {}

    def of(self, device: torch.device) -> Tensor | None:
        """For a launch on the current stream; None: the call makes its own."""
        if device.type == "cpu" or torch.compiler.is_compiling():
            return None
        number, stream = self._capture(device), torch.accelerator.current_stream(device).stream_id
        if number is None:
            return None
        found = self._held.get((device, stream))
        if found is None or found[0] != number:
            zeros = torch.zeros(MOST_TILES, dtype=torch.int32, device=device)
            found = self._held[device, stream] = number, zeros
        return found[1]


class TritonLinear(LinearKernel):
    """`dsv4core.kernels.triton.quantised_linear`; also the grouped projection, bf16 and fp8.

    A backend whose tensors Triton can reach offers it; it imports triton when a weight is prepared. More than
    128 tokens of a bf16 product go over a dense copy that lives as long as the call.
    """

    name = "triton"
    rank = 50

    def __init__(self, arrivals: Arrivals | None = None) -> None:
        self.arrivals = arrivals or Arrivals()

    def supports(self, problem: Problem) -> Literal[True] | str:
        """Quantised weights of whole groups, activations in bf16 or (with fp8 blocks) in fp8."""
        if not module_exists("triton"):
            return "triton is not installed"
        if problem.format == "bf16":
            return "the weight is not quantised: plain products are the op's"
        fp8 = problem.quantise or problem.x == torch.float8_e4m3fn
        if problem.x not in (torch.bfloat16, torch.float8_e4m3fn):
            return f"activations are {problem.x}, it multiplies bf16 and float8_e4m3fn"
        if fp8 and (problem.format != "fp8_block" or problem.inputs % activation.GROUP):
            return "fp8 activations go with fp8_block weights of whole blocks only"
        if problem.quantise and problem.groups:
            return "activations of groups come quantised, from fused_inv_rope_fp8_quant"
        if problem.format != "fp8_block" and problem.inputs % 32:
            return f"{problem.inputs} inputs are not whole groups of 32"
        if problem.groups and problem.rows // problem.groups % ROWS:
            return f"{problem.rows // problem.groups} outputs a group are no multiple of {ROWS}"
        return True

    def prepare(self, weight: Weight, problem: Problem) -> Any:
        """The weight, contiguous."""
        assert isinstance(weight, QuantisedWeight)
        return QuantisedWeight(weight.weight.contiguous(), weight.scales.contiguous(), weight.global_scale)

    def apply(self, problem: Problem, prepared: Any, x: Tensor, x_scales: Tensor | None) -> Tensor:
        """One launch, one more for fp8 activations; dequantised first for many tokens."""
        kernel = import_module("dsv4core.kernels.triton.quantised_linear").quantised_linear
        quantise = import_module("dsv4core.kernels.triton.quantise_activation").quantise_activation
        groups, tokens, weight = max(problem.groups, 1), x.shape[0], prepared
        if tokens > DENSE_ABOVE and self._may_be_dense(problem):
            return self._dense(problem, weight, x)
        if problem.quantise:
            x, x_scales = quantise(x)
        elif x_scales is not None and x_scales.dtype == torch.int32:  # four UE8M0 bytes a word
            x_scales = ue8m0.exp2(ue8m0.byte_exponent(x_scales.contiguous().view(torch.uint8)))
        out = kernel(
            x.reshape(tokens, groups, problem.inputs),
            None if x_scales is None else x_scales.reshape(tokens, groups, x_scales.shape[-1]),
            weight.weight, weight.scales, weight.global_scale, format=problem.format, out_dtype=problem.out,
            groups=groups, arrived=self.arrivals.of(x.device),
        )  # fmt: skip
        return out.view(tokens, groups, problem.rows // groups) if problem.groups else out

    @staticmethod
    def _may_be_dense(problem: Problem) -> bool:
        """Where bf16 holds the matrix as well as the op's own product has it."""
        exact = problem.scales != torch.float32
        return exact and (problem.x, problem.out) == (torch.bfloat16, torch.bfloat16)

    @staticmethod
    def _dense(problem: Problem, weight: QuantisedWeight, x: Tensor) -> Tensor:
        dequantise = import_module("dsv4core.kernels.triton.dequantise_weight").dequantise_weight
        matrix = dequantise(weight.weight, weight.scales, weight.global_scale, format=problem.format)
        rounded = import_module("dsv4core.kernels.triton.quantise_activation").rounded_activation
        if not problem.groups:
            return F.linear(rounded(x) if problem.quantise else x, matrix)
        inputs = x.reshape(x.shape[0], problem.groups, problem.inputs).transpose(0, 1)
        inputs = activation.reachable(inputs)
        return torch.bmm(inputs, matrix.view(problem.groups, -1, problem.inputs).mT).transpose(0, 1)
