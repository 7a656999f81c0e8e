"""Linear kernels of libraries for NVIDIA devices; each says itself whether it can run here."""

from __future__ import annotations

import logging
from dataclasses import replace
from importlib import import_module
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv4core import env
from dsv4core.linear import LinearKernel, Problem, QuantisedWeight, Weight
from dsv4core.linear.triton_kernel import Arrivals, TritonLinear
from dsv4core.numerics.block_fp8 import scale_values
from dsv4core.probe import describe, module_exists
from dsv4core_cuda.cutedsl import few_tokens
from dsv4core_cuda.cutedsl._probe import reason_against
from dsv4core_cuda.schedule import capture_id

log = logging.getLogger("dsv4core")

BLOCK = 128
FEW = 64  # tokens
COLUMN = 4  # f32 scales: cuBLASLt wants columns of whole 16 bytes


def kernels() -> list[LinearKernel]:
    """All of them, available or not; DSV4CORE_CUDA_KERNELS says where our own is used, as it does for ops."""
    wanted = env.settings("cuda").get("kernels") or "auto"
    triton = TritonLinear(Arrivals(lambda device: capture_id(torch.cuda.current_stream(device))))
    own = FewTokens(triton, wanted)
    return [CuteDslNvfp4(), DeepGemm(), ScaledMatmul(triton), own, triton, WideResult()]


def capability(device: torch.device) -> tuple[int, int]:
    """Of a CUDA device; (0, 0) for any other."""
    found = device.type == "cuda" and torch.cuda.is_available()
    return torch.cuda.get_device_capability(device) if found else (0, 0)


def fp8_blocks(problem: Problem) -> Literal[True] | str:
    """Whether both operands are fp8, as 1 x 128 and 128 x 128 scaled products want them."""
    if problem.format != "fp8_block":
        return f"it multiplies fp8_block weights, not {problem.format}"
    if problem.groups or not problem.quantise:
        return "it multiplies fp8 activations, and this projection keeps bf16 (activation_quant)"
    if problem.rows % BLOCK or problem.inputs % BLOCK or problem.out != torch.bfloat16:
        return f"it needs whole blocks of {BLOCK} and a bf16 result, not {problem}"
    return True


class WideResult(LinearKernel):
    """bf16 operands, f32 sums and result: the compressors' product, without widening their weights."""

    name = "wide"
    rank = 30

    def supports(self, problem: Problem) -> Literal[True] | str:
        """Plain bf16 weights and an f32 result."""
        if problem.format != "bf16" or problem.groups or problem.quantise or problem.out != torch.float32:
            return f"it multiplies bf16 weights to an f32 result, not {problem}"
        if problem.x != torch.bfloat16 or problem.device.type != "cuda":
            return f"it multiplies bf16 activations on a CUDA device, not {problem.x} on {problem.device}"
        return True

    def apply(self, problem: Problem, prepared: Any, x: Tensor, x_scales: Tensor | None) -> Tensor:
        """One product."""
        return torch.mm(x, prepared.mT, out_dtype=torch.float32)


class FewTokens(LinearKernel):
    """`cutedsl.few_tokens` for up to 64 tokens, on Hopper; more go to Triton's. Run on an H100.

    `wanted`: auto, where it measured faster; cutedsl, wherever it can; triton, nowhere.
    """

    name = "few_tokens"
    rank = 52

    def __init__(self, many: TritonLinear, wanted: str = "auto") -> None:
        self.many, self.wanted = many, wanted

    def supports(self, problem: Problem) -> Literal[True] | str:
        """fp8 weights and bf16 activations, SM90, an installed CuTeDSL and a shape that measured faster."""
        if self.wanted == "triton":
            return "DSV4CORE_CUDA_KERNELS=triton"
        if problem.format != "fp8_block" or problem.groups or problem.quantise:
            return f"it multiplies bf16 activations by ungrouped fp8_block weights, not {problem}"
        if problem.x != torch.bfloat16 or problem.out != torch.bfloat16:
            return f"it takes and gives bf16, not {problem.x} and {problem.out}"
        found = capability(problem.device)
        if found != (9, 0):
            return f"it runs on SM90, this is SM{found[0]}{found[1]}"
        reason = reason_against(found)
        if not reason:
            reason = few_tokens.reason_against(problem.rows, problem.inputs, self.wanted == "cutedsl")
        return reason or self.many.supports(problem)

    def prepare(self, weight: Weight, problem: Problem) -> Any:
        """What Triton's kernel takes, and whether CuTeDSL's runs here."""
        stored = self.many.prepare(weight, problem)
        stored = replace(stored, weight=_aligned(stored.weight), scales=_aligned(stored.scales))
        try:
            few_tokens.load(problem.inputs, stored.scales.dtype, stored.weight.device.index)
        except (Exception, SystemExit) as error:  # a driver or compiler of another age
            log.warning("cuda: %s goes to triton, CuTeDSL does not run here: %s", problem, describe(error))
            return stored, False
        return stored, True

    def apply(self, problem: Problem, prepared: Any, x: Tensor, x_scales: Tensor | None) -> Tensor:
        """One launch; a graph of torch.compile, which cannot hold it, gets Triton's."""
        stored, runs = prepared
        if runs and 0 < x.shape[0] <= few_tokens.MOST and not torch.compiler.is_compiling():
            return few_tokens.few_tokens(x, stored.weight, stored.scales)
        return self.many.apply(problem, stored, x, x_scales)


def _aligned(tensor: Tensor) -> Tensor:
    """A tensor that 16 bytes at a time can be copied from: one in the middle of a buffer may not be."""
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


class ScaledMatmul(LinearKernel):
    """torch's block-scaled matmul (cuBLASLt), on Hopper; few tokens go to Triton's. Run on an H100."""

    name = "scaled_mm"
    rank = 55

    def __init__(self, few: TritonLinear) -> None:
        self.few = few

    def supports(self, problem: Problem) -> Literal[True] | str:
        """fp8 activations and SM90: torch has block scales of 128 there only."""
        found = capability(problem.device)
        if found[0] != 9:
            return f"torch multiplies with 128 x 128 scales on SM90 only, this is SM{found[0]}{found[1]}"
        blocks = fp8_blocks(problem)
        return blocks if blocks is not True else self.few.supports(problem)

    def prepare(self, weight: Weight, problem: Problem) -> Any:
        """What Triton's kernel takes; the codes and f32 scales as columns."""
        stored = self.few.prepare(weight, problem)
        return stored, stored.weight.t(), scale_values(stored.scales).t()

    def apply(self, problem: Problem, prepared: Any, x: Tensor, x_scales: Tensor | None) -> Tensor:
        """Quantise, then one product."""
        from dsv4core.kernels.triton.quantise_activation import quantise_activation

        stored, weight, scales = prepared
        tokens = x.shape[0]
        if tokens <= FEW:
            return self.few.apply(problem, stored, x, x_scales)
        short = -tokens % COLUMN
        codes, x_scales = quantise_activation(F.pad(x, (0, 0, 0, short)) if short else x, by_column=True)
        product = torch._scaled_mm(codes, weight, scale_a=x_scales, scale_b=scales, out_dtype=torch.bfloat16)
        return product[:tokens]


class DeepGemm(LinearKernel):
    """DeepSeek's fp8 product, where `deep_gemm` is installed and fits torch. Not run on hardware."""

    name = "deepgemm"
    rank = 60

    def supports(self, problem: Problem) -> Literal[True] | str:
        """fp8 activations, SM90 or SM100, and a library that loads."""
        found = fp8_blocks(problem)
        if found is not True:
            return found
        if not module_exists("deep_gemm"):
            return "deep_gemm is not installed"
        if capability(problem.device)[0] not in (9, 10):
            return "deep_gemm runs on SM90 and SM100"
        try:
            import_module("deep_gemm")
        except Exception as error:  # built for another torch: missing symbols, or no compiler for its kernels
            return f"deep_gemm does not load: {str(error).splitlines()[0][:120]}"
        return True

    def prepare(self, weight: Weight, problem: Problem) -> Any:
        """The codes and f32 scales."""
        assert isinstance(weight, QuantisedWeight)
        return weight.weight.contiguous(), scale_values(weight.scales).contiguous()

    def apply(self, problem: Problem, prepared: Any, x: Tensor, x_scales: Tensor | None) -> Tensor:
        """Quantise, then one product."""
        from dsv4core.kernels.triton.quantise_activation import quantise_activation

        out = x.new_empty(x.shape[0], problem.rows)
        import_module("deep_gemm").fp8_gemm_nt(quantise_activation(x), prepared, out)
        return out


class CuteDslNvfp4(LinearKernel):
    """FlashInfer's CuTe DSL product of bf16 and NVFP4, with weights repacked for it. Not run on hardware."""

    name = "cutedsl"
    rank = 80

    def supports(self, problem: Problem) -> Literal[True] | str:
        """NVFP4 weights on SM100 or SM103, and a FlashInfer that has the product."""
        if problem.format != "nvfp4" or problem.groups or problem.x != torch.bfloat16:
            return f"it multiplies bf16 by ungrouped nvfp4, not {problem}"
        if problem.out != torch.bfloat16 or problem.inputs % BLOCK or problem.rows % BLOCK:
            return f"it needs multiples of {BLOCK} and a bf16 result, not {problem}"
        found = capability(problem.device)
        if found not in ((10, 0), (10, 3)):
            return f"it runs on SM100 and SM103, this is SM{found[0]}{found[1]}"
        for module in ("flashinfer", "cutlass"):
            if not module_exists(module):
                return f"{module} is not installed"
        if not hasattr(import_module("flashinfer"), "mm_bf16_fp4"):
            return "this flashinfer has no mm_bf16_fp4"
        return True

    def prepare(self, weight: Weight, problem: Problem) -> Any:
        """Codes and scales in the kernel's own order, once."""
        assert isinstance(weight, QuantisedWeight)
        prepare = import_module("flashinfer").prepare_bf16_fp4_weights
        scales = interleaved(weight.scales)
        return prepare(weight.weight.contiguous(), scales, weight.global_scale, backend="cute-dsl")

    def apply(self, problem: Problem, prepared: Any, x: Tensor, x_scales: Tensor | None) -> Tensor:
        """One product."""
        product = import_module("flashinfer").mm_bf16_fp4
        return product(x.contiguous(), *prepared, backend="cute-dsl", out_dtype=torch.bfloat16)


def interleaved(scales: Tensor) -> Tensor:
    """Scales in tiles of 128 rows x 4, in which rows 32 apart lie together: how block-scaled MMAs read them.

    Shapes: e4m3 [rows, n] -> e4m3 [rows up to 128, n up to 4], filled with zeros.
    """
    rows, columns = scales.shape
    padded = F.pad(scales.view(torch.uint8), (0, -columns % 4, 0, -rows % 128))
    down, across = padded.shape[0] // 128, padded.shape[1] // 4
    tiles = padded.view(down, 4, 32, across, 4).permute(0, 3, 2, 1, 4)
    return tiles.reshape(padded.shape).view(scales.dtype)
