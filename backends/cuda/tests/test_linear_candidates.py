"""The linear kernels of libraries where nothing of them is there: every refusal has its reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dsv4core.linear import Problem, triton_kernel
from dsv4core.linear.triton_kernel import TritonLinear
from dsv4core_cuda import linear
from dsv4core_cuda.linear import CuteDslNvfp4, DeepGemm, ScaledMatmul, WideResult, interleaved, kernels

BF16 = torch.bfloat16
FP8 = Problem("fp8_block", torch.float32, 1536, 4096, BF16, BF16, torch.device("cpu"), quantise=True)
NVFP4 = replace(FP8, format="nvfp4", scales=torch.float8_e4m3fn, quantise=False)


def on(monkeypatch: pytest.MonkeyPatch, *capability: int) -> None:
    monkeypatch.setattr(linear, "capability", lambda device: capability)


def test_ranks() -> None:
    assert max(kernels(), key=lambda kernel: kernel.rank).name == "cutedsl"


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


def test_wide_results() -> None:
    kernel = WideResult()
    wide = Problem("bf16", None, 2048, 4096, BF16, torch.float32, torch.device("cuda"))
    assert kernel.supports(wide) is True
    assert "bf16 weights to an f32 result" in str(kernel.supports(replace(wide, out=BF16)))
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
