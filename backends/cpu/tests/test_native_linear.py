"""NVFP4 products of the native library against the dequantised matrix in f64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from native_world import BF16, F32, World, raw

from dsv4core.linear import Problem, QuantisedWeight
from dsv4core_cpu.linear import NativeLinear

NAN = 0x7F


def weight(w: World, rows: int, inputs: int) -> QuantisedWeight:
    """Every code, and every scale but the two that are no numbers."""
    scales = w.ints(0, 255, rows, inputs // 16, dtype=torch.uint8)
    scales = torch.where(scales % 128 == NAN, 0, scales).view(torch.float8_e4m3fn)
    codes = w.ints(0, 256, rows, inputs // 2, dtype=torch.uint8)
    return QuantisedWeight(codes, scales, torch.tensor([0.0123]))


@pytest.mark.parametrize("out", [BF16, F32])
@pytest.mark.parametrize("tokens", [0, 1, 6, 13, 300])
@pytest.mark.parametrize("shape", [(16, 128), (80, 384), (192, 1024)])
def test_product(native, shape: tuple[int, int], tokens: int, out: torch.dtype) -> None:
    """Within one rounding of the result; the same bits for any number of threads and for a row alone."""
    w = World(sum(shape))
    stored, kernel = weight(w, *shape), NativeLinear(native)
    problem = Problem.of(stored, BF16, out)
    assert kernel.supports(problem) is True
    prepared = kernel.prepare(stored, problem)
    x = w.floats(tokens, shape[1] + 1, dtype=BF16)[:, 1:]  # rows at odd addresses
    got = kernel.apply(problem, prepared, x, None)
    assert got.dtype == out and got.shape == (tokens, shape[0])
    wanted = x.double() @ stored.dequantised().double().T
    scale = x.double().abs() @ stored.dequantised().double().abs().T
    bound = 2e-6 * scale + (2.0**-8 * wanted.abs() if out == BF16 else 0)
    assert bool(((got.double() - wanted).abs() <= bound).all())
    for threads in (2, 5):
        torch.set_num_threads(threads)
        assert torch.equal(raw(kernel.apply(problem, prepared, x, None)), raw(got))
    for t in range(0, tokens, 7):
        alone = kernel.apply(problem, prepared, x[t : t + 1], None)
        assert torch.equal(raw(alone), raw(got[t : t + 1]))


def test_groups(native) -> None:
    """Each group of outputs has inputs of its own, here heads with others behind them."""
    w, groups, tokens = World(3), 3, 9
    stored, kernel = weight(w, groups * 128, 1024), NativeLinear(native)
    problem = Problem.of(stored, BF16, BF16, groups=groups)
    assert kernel.supports(problem) is True
    x = w.floats(tokens, groups * 2 + 1, 512, dtype=BF16)[:, : groups * 2]
    got = kernel.apply(problem, kernel.prepare(stored, problem), x, None)
    matrix = stored.dequantised().double().view(groups, 128, 1024)
    wanted = torch.einsum("tgi,goi->tgo", x.double().reshape(tokens, groups, 1024), matrix)
    assert got.shape == wanted.shape
    assert float((got.double() - wanted).norm() / wanted.norm()) < 2e-3


def test_what_it_leaves_to_others(native) -> None:
    """Every refusal says why."""
    problem = Problem.of(weight(World(1), 32, 256), BF16, BF16)
    kernel = NativeLinear(native)
    for change, words in (
        ({"format": "mxfp4"}, "nvfp4 only"), ({"x": F32}, "activations are torch.float32"),
        ({"groups": 2}, "16 outputs a group"), ({"rows": 24}, "[24, 256] is not made of 16"),
        ({"inputs": 192}, "by 128 inputs"),
    ):  # fmt: skip
        assert words in str(kernel.supports(replace(problem, **change)))
    assert "were not built" in str(NativeLinear(None).supports(problem))
