"""Scale exponents over every positive finite bf16 amax against Python's frexp."""

import math

import pytest
import torch

from dsv4core.numerics import ue8m0


def all_positive_bf16() -> torch.Tensor:
    return torch.arange(1, 0x7F80, dtype=torch.int16).view(torch.bfloat16)


def frexp_exponent(amax: float, offset: int, threshold: float) -> int:
    mantissa, exponent = math.frexp(amax)
    return exponent - offset + (mantissa > threshold)


@pytest.mark.parametrize(
    ("function", "floor", "offset", "threshold", "largest"),
    [
        (ue8m0.exponent_e4m3, ue8m0.FLOOR_E4M3, 9, 0.875, 448.0),
        (ue8m0.exponent_e4m3, ue8m0.FLOOR_OUTPUT, 9, 0.875, 448.0),
        (ue8m0.exponent_e2m1, ue8m0.FLOOR_E2M1, 3, 0.75, 6.0),
    ],
)
def test_every_bf16_amax(function, floor, offset, threshold, largest):
    amax = all_positive_bf16()
    assert amax.numel() == 32639
    floored = amax.float().clamp(min=floor)
    exponents = function(floored).tolist()
    bytes_ = ue8m0.to_byte(function(floored)).tolist()
    for a, e, b in zip(floored.tolist(), exponents, bytes_, strict=True):
        assert e == frexp_exponent(a, offset, threshold)
        # the smallest power of two that brings amax into range
        assert a <= largest * 2.0**e
        assert a > largest * 2.0 ** (e - 1)
        assert b == min(max(e + 127, 1), 254)


@pytest.mark.parametrize("above", [0, 1, -1])
def test_unrounded_fp32_amax_around_the_thresholds(above):
    for function, offset, threshold in ((ue8m0.exponent_e4m3, 9, 0.875), (ue8m0.exponent_e2m1, 3, 0.75)):
        edges = torch.tensor([threshold * 2.0**e for e in range(-125, 128)])
        amax = (edges.view(torch.int32) + above).view(torch.float32)
        want = [frexp_exponent(a, offset, threshold) for a in amax.tolist()]
        assert function(amax).tolist() == want


def test_published_vectors():
    # amax -> byte, as engines write it
    e4m3 = {0.0: 105, 1e-4: 105, 0.02734375: 113, 1.0: 119, 7.0: 121, 7.03125: 122, 448.0: 127, 450.0: 128}
    e4m3[3.3895313892515355e38] = 247
    amax = torch.tensor(list(e4m3)).clamp(min=ue8m0.FLOOR_E4M3)
    assert ue8m0.to_byte(ue8m0.exponent_e4m3(amax)).tolist() == list(e4m3.values())
    e2m1 = {0.0: 1, 1.0: 125, 6.0: 127, 6.03125: 128}
    amax = torch.tensor(list(e2m1)).clamp(min=ue8m0.FLOOR_E2M1)
    assert ue8m0.to_byte(ue8m0.exponent_e2m1(amax)).tolist() == list(e2m1.values())


def test_exp2_and_bytes():
    exponents = torch.arange(-126, 128, dtype=torch.int32)
    assert ue8m0.exp2(exponents).double().tolist() == [2.0**e for e in range(-126, 128)]
    every = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    assert ue8m0.byte_exponent(every).tolist() == [min(max(b, 1), 254) - 127 for b in range(256)]
    assert ue8m0.to_byte(torch.tensor([-300, -126, 0, 127, 300])).tolist() == [1, 1, 127, 254, 254]


def test_non_finite_amax_gives_a_legal_byte():
    amax = torch.tensor([float("inf"), float("nan")])
    for function in (ue8m0.exponent_e4m3, ue8m0.exponent_e2m1):
        assert all(1 <= b <= 254 for b in ue8m0.to_byte(function(amax)).tolist())
