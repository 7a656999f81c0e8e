"""The linear kernels of libraries where nothing of them is there: every refusal has its reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv4core.linear import Problem, QuantisedWeight, triton_kernel
from dsv4core.linear.triton_kernel import TritonLinear
from dsv4core.numerics import block_fp8
from dsv4core_cuda import linear
from dsv4core_cuda.cutedsl import few_tokens
from dsv4core_cuda.linear import (
    CuteDslNvfp4,
    DeepGemm,
    FewTokens,
    ScaledMatmul,
    WideResult,
    interleaved,
    kernels,
)

BF16 = torch.bfloat16
FP8 = Problem("fp8_block", torch.float32, 1536, 4096, BF16, BF16, torch.device("cpu"), quantise=True)
NVFP4 = replace(FP8, format="nvfp4", scales=torch.float8_e4m3fn, quantise=False)


def on(monkeypatch: pytest.MonkeyPatch, *capability: int) -> None:
    monkeypatch.setattr(linear, "capability", lambda device: capability)


def test_ranks() -> None:
    names = [kernel.name for kernel in sorted(kernels(), key=lambda kernel: -kernel.rank)]
    assert names == ["cutedsl", "deepgemm", "scaled_mm", "few_tokens", "triton", "wide"]


def test_scaled_matmul(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = ScaledMatmul(TritonLinear())
    assert kernel.supports(FP8) == "torch multiplies with 128 x 128 scales on SM90 only, this is SM00"
    on(monkeypatch, 10, 0)
    assert "SM90 only, this is SM100" in str(kernel.supports(FP8))
    on(monkeypatch, 9, 0)
    monkeypatch.setattr(triton_kernel, "module_exists", lambda name: False)
    assert kernel.supports(FP8) == "triton is not installed", "it quantises activations"
    monkeypatch.setattr(triton_kernel, "module_exists", lambda name: True)
    assert kernel.supports(FP8) is True
    assert "keeps bf16" in str(kernel.supports(replace(FP8, quantise=False)))
    assert "multiplies fp8_block weights, not nvfp4" in str(kernel.supports(NVFP4))
    assert "whole blocks of 128" in str(kernel.supports(replace(FP8, rows=130)))


@pytest.mark.parametrize("scale", ["ue8m0", "f32"])
def test_scaled_matmul_of_no_tokens(scale: str) -> None:
    kernel = ScaledMatmul(TritonLinear())
    weight = QuantisedWeight(*block_fp8.quantise(torch.ones(128, 256), scale))
    problem = Problem.of(weight, BF16, BF16, quantise=True)
    got = kernel.apply(problem, kernel.prepare(weight, problem), torch.zeros(0, 256, dtype=BF16), None)
    assert got.shape == (0, 128) and got.dtype == BF16


class Recorder(TritonLinear):
    """In the place of Triton's kernel: says that it was asked."""

    def apply(self, problem: Problem, prepared: Any, x: Tensor, x_scales: Tensor | None) -> Tensor:
        return torch.zeros(0)


def test_few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = replace(FP8, quantise=False)
    monkeypatch.setattr(triton_kernel, "module_exists", lambda name: True)
    monkeypatch.setattr(linear, "reason_against", lambda found: "")
    kernel = FewTokens(TritonLinear())
    assert kernel.supports(plain) == "it runs on SM90, this is SM00"
    on(monkeypatch, 9, 0)
    assert kernel.supports(plain) is kernel.supports(replace(plain, rows=8192, inputs=1024)) is True
    wq_b = replace(plain, rows=32768, inputs=1024)
    assert "measured faster for [1536, 4096], [8192, 1024], [4096, 1024] only; DSV4CORE" in str(
        kernel.supports(wq_b)
    )
    assert FewTokens(TritonLinear(), "cutedsl").supports(wq_b) is True
    assert FewTokens(TritonLinear(), "triton").supports(plain) == "DSV4CORE_CUDA_KERNELS=triton"
    for inputs in (512, 1536, 8192):
        refused = FewTokens(TritonLinear(), "cutedsl").supports(replace(plain, inputs=inputs))
        assert f"of 128 outputs and 1024, 2048, 4096 inputs, not 1536 and {inputs}" in str(refused)
    for other in (FP8, replace(plain, groups=8), replace(plain, format="mxfp4")):
        assert "bf16 activations by ungrouped fp8_block weights" in str(kernel.supports(other))
    assert "takes and gives bf16" in str(kernel.supports(replace(plain, out=torch.float32)))
    monkeypatch.setattr(linear, "reason_against", lambda found: "CuTeDSL is not installed")
    assert kernel.supports(plain) == "CuTeDSL is not installed"


def test_few_tokens_prepares_and_hands_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """More than 64 tokens, none, and every call where CuTeDSL does not run are Triton's."""
    kernel, problem = FewTokens(Recorder()), replace(FP8, quantise=False, rows=128, inputs=1024)
    weight = QuantisedWeight(*block_fp8.quantise(torch.ones(128, 1024), "ue8m0"))
    monkeypatch.setattr(few_tokens, "few_tokens", lambda x, codes, scales: x)

    def apply(prepared: Any, tokens: int) -> int:
        return kernel.apply(problem, prepared, torch.ones(tokens, 1024, dtype=BF16), None).shape[0]

    monkeypatch.setattr(few_tokens, "load", lambda *given: None)
    prepared = kernel.prepare(weight, problem)
    assert [apply(prepared, tokens) for tokens in (0, 1, 64, 65)] == [0, 1, 64, 0]

    def fails(*given: Any) -> None:
        raise OSError("libcuda.so.1: no such file")

    monkeypatch.setattr(few_tokens, "load", fails)
    assert apply(kernel.prepare(weight, problem), 1) == 0
    assert "goes to triton, CuTeDSL does not run here: OSError: libcuda.so.1" in caplog.text
    buffer = torch.zeros(8 + weight.weight.numel(), dtype=torch.uint8)
    inside = buffer[8:].view(weight.weight.dtype).view(weight.weight.shape)
    inside.copy_(weight.weight)
    stored, _ = kernel.prepare(QuantisedWeight(inside, weight.scales), problem)
    assert stored.weight.data_ptr() % 16 == 0 and stored.scales.data_ptr() % 16 == 0
    assert torch.equal(stored.weight.view(torch.uint8), weight.weight.view(torch.uint8))


def test_a_product_of_few_tokens_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The narrowest kernel that holds the tokens; rows at odd addresses are copied first."""
    started: list[tuple[Any, ...]] = []

    class Program:
        def __init__(self, *form: Any) -> None:
            self.form = form

        def on(self, device: int) -> Any:
            return lambda *given: started.append((self.form, given[0], given[6:]))

    monkeypatch.setattr(few_tokens, "program", Program)
    weight, scales = block_fp8.quantise(torch.ones(256, 2048), "ue8m0")
    x = torch.ones(9, 2049, dtype=BF16)
    assert few_tokens.few_tokens(x[:8, :2048], weight, scales).shape == (8, 256)
    few_tokens.few_tokens(torch.ones(9, 2048, dtype=BF16), weight, scales)
    assert started == [((8, 4, True), (4, 2, 1), (8, 2048, 256)), ((16, 4, True), (4, 2, 1), (9, 2048, 256))]
    few_tokens.load(2048, torch.float32, 0)


def test_wide_results() -> None:
    kernel = WideResult()
    wide = Problem("bf16", None, 2048, 4096, BF16, torch.float32, torch.device("cuda"))
    assert kernel.supports(wide) is True
    for other in (replace(wide, out=BF16), replace(wide, quantise=True)):
        assert "bf16 weights to an f32 result" in str(kernel.supports(other))
    assert "on a CUDA device" in str(kernel.supports(replace(wide, device=torch.device("cpu"))))


def test_deepgemm(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = DeepGemm()
    monkeypatch.setattr(linear, "module_exists", lambda name: False)
    assert kernel.supports(FP8) == "deep_gemm is not installed"
    monkeypatch.setattr(linear, "module_exists", lambda name: True)
    assert kernel.supports(FP8) == "deep_gemm runs on SM90 and SM100"
    on(monkeypatch, 9, 0)

    def broken(name: str):
        raise OSError("_C.so: undefined symbol: aoti_torch_x\nmore")

    monkeypatch.setattr(linear, "import_module", broken)
    assert kernel.supports(FP8) == "deep_gemm does not load: _C.so: undefined symbol: aoti_torch_x"


def test_cutedsl(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = CuteDslNvfp4()
    assert "it multiplies bf16 by ungrouped nvfp4" in str(kernel.supports(FP8))
    on(monkeypatch, 9, 0)
    assert kernel.supports(NVFP4) == "it runs on SM100 and SM103, this is SM90"
    on(monkeypatch, 10, 0)
    monkeypatch.setattr(linear, "module_exists", lambda name: name == "flashinfer")
    assert kernel.supports(NVFP4) == "cutlass is not installed"


def test_interleaved_scales() -> None:
    """Row m, scale k lies in tile (m / 128, k / 4) at (m mod 32) * 16 + (m mod 128 / 32) * 4 + k mod 4."""
    rows, columns = 200, 10
    scales = torch.arange(rows * columns).remainder(120).to(torch.uint8).view(rows, columns)
    found = interleaved(scales.view(torch.float8_e4m3fn)).view(torch.uint8)
    assert found.shape == (256, 12)
    flat = found.flatten()
    for m in range(rows):
        for k in range(columns):
            tile = m // 128 * 3 + k // 4
            assert flat[tile * 512 + m % 32 * 16 + m % 128 // 32 * 4 + k % 4] == scales[m, k]
    assert int((flat != 0).sum()) == int((scales != 0).sum()), "filled with zeros"
