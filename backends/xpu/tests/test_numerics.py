"""The canonical arithmetic in Triton against the torch statement, exhaustively where that is possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from dsv4core.kernels.triton import numerics as device
from dsv4core.numerics import e2m1, e4m3, ue8m0
from dsv4core.numerics.exp import exp_nonpositive
from dsv4core.numerics.hadamard import hadamard128
from dsv4core.numerics.norm import inverse_rms
from dsv4core.numerics.rope import rotate

BLOCK = 1 << 14


@triton.jit
def _elementwise(x, out, n, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i, i < n, other=0)
    tl.store(out + i, FUNCTION(value), i < n)


def apply(function: Any, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """One function over a vector under the interpreter."""
    out = torch.empty(x.shape, dtype=dtype)
    _elementwise[(-(-x.numel() // BLOCK),)](x, out, x.numel(), FUNCTION=function, BLOCK=BLOCK)
    return out


def floats(bits: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(bits.astype(np.uint32).view(np.float32).copy())


def every_bf16() -> torch.Tensor:
    """All finite bf16 values of both signs, as f32."""
    bits = np.arange(1 << 16, dtype=np.uint32) << 16
    return floats(bits[(bits & 0x7F800000) != 0x7F800000])


def around(values: torch.Tensor) -> torch.Tensor:
    """Values, the midpoints between neighbours, and one ulp to either side of each."""
    ordered = torch.sort(values[torch.isfinite(values)]).values.double()
    middle = ((ordered[1:] + ordered[:-1]) / 2).float()
    points = torch.cat((ordered.float(), middle))
    infinity = torch.full_like(points, torch.inf)
    return torch.cat((points, torch.nextafter(points, infinity), torch.nextafter(points, -infinity)))


def random_floats(seed: int, count: int = 1 << 16) -> torch.Tensor:
    """Finite f32 of every exponent."""
    bits = np.random.default_rng(seed).integers(0, 1 << 32, count, dtype=np.uint64)
    return floats(bits[(bits & 0x7F800000) != 0x7F800000])


def hard(values: torch.Tensor) -> torch.Tensor:
    """Every bf16, all neighbourhoods of a format's values at several scales, random bits, halfway bf16."""
    halves = floats((np.arange(1 << 16, dtype=np.uint32) << 16)[:, None] + np.array([0x7FFF, 0x8000, 0x8001]))
    halves = halves[torch.isfinite(halves)].flatten()
    return torch.cat((every_bf16(), around(values), halves, random_floats(1)))


def same(got: torch.Tensor, expected: torch.Tensor) -> None:
    wrong = got.view(torch.uint8) != expected.view(torch.uint8)
    assert not wrong.any(), f"{int(wrong.sum())} bytes differ"


CPU = torch.device("cpu")
ENCODERS: list[tuple[Any, Callable[[torch.Tensor], torch.Tensor], torch.Tensor]] = [
    (device.encode_e4m3, e4m3.encode, e4m3.values(CPU)),
    (device.encode_e4m3_fnuz, e4m3.encode_fnuz, e4m3.values_fnuz(CPU)),
    (device.encode_e2m1, e2m1.encode, e2m1.values(CPU)),
]


@pytest.mark.parametrize("kernel, body, values", ENCODERS, ids=["e4m3", "e4m3_fnuz", "e2m1"])
def test_encoders(kernel: Any, body: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor) -> None:
    x = torch.cat((hard(values), torch.tensor([torch.inf, -torch.inf])))
    same(apply(kernel, x, torch.uint8), body(x))


def test_round_bf16() -> None:
    x = hard(every_bf16())
    x = x[torch.isfinite(x)]
    same(apply(device.round_bf16, x, torch.float32), x.to(torch.bfloat16).float())
    same(apply(device.to_bf16, x, torch.bfloat16), x.to(torch.bfloat16))
    same(apply(device.widen, every_bf16().to(torch.bfloat16), torch.float32), every_bf16())


def test_finite() -> None:
    x = torch.cat((random_floats(3, 4096), torch.tensor([torch.nan, torch.inf, -torch.inf, 3.4e38, -3.4e38])))
    x = torch.cat((x, floats(np.array([0xFFFFFFFF, 0x7F800001, 0xFFC00000]))))
    rounded = x.to(torch.bfloat16).nan_to_num(0.0, 2.0**127, -(2.0**127)).float()
    same(apply(device.finite_bf16, x, torch.float32), rounded)
    same(apply(device.finite, x, torch.float32), x.nan_to_num(0.0, 2.0**127, -(2.0**127)))


def test_decoders() -> None:
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    got, expected = apply(device.decode_e4m3, codes, torch.float32), e4m3.decode(codes)
    assert torch.equal(got.isnan(), expected.isnan())
    same(got.nan_to_num(), expected.nan_to_num())
    got, expected = apply(device.decode_e4m3_fnuz, codes, torch.float32), e4m3.decode_fnuz(codes)
    assert torch.equal(got.isnan(), expected.isnan())
    same(got.nan_to_num(), expected.nan_to_num())
    low = torch.arange(16, dtype=torch.int32)
    same(apply(device.decode_e2m1, low, torch.float32), e2m1.decode(low.to(torch.uint8)))
    same(apply(device.byte_scale, codes, torch.float32), ue8m0.exp2(ue8m0.byte_exponent(codes)))


def test_exponents() -> None:
    x = torch.cat((every_bf16(), random_floats(2), around(every_bf16())))
    x = x[torch.isfinite(x)].abs()
    floored = x.clamp(min=1e-10)
    same(apply(device.exponent_e4m3, floored, torch.int32), ue8m0.exponent_e4m3(floored))
    floored = x.clamp(min=ue8m0.FLOOR_E2M1)
    same(apply(device.exponent_e2m1, floored, torch.int32), ue8m0.exponent_e2m1(floored))
    exponent = torch.arange(-300, 300, dtype=torch.int32)
    same(apply(device.scale_byte, exponent, torch.int32), ue8m0.to_byte(exponent).int())


def test_exp() -> None:
    x = -random_floats(4).abs()
    near = -torch.rand(1 << 16, generator=torch.Generator().manual_seed(5)) * 90
    edge = floats(np.arange(0xC2ADFF00, 0xC2AE0100))  # around -87
    x = torch.cat((x, near, edge, torch.tensor([0.0, -0.0, -torch.inf])))
    same(apply(device.exp_nonpositive, x, torch.float32), exp_nonpositive(x))


@triton.jit
def _rms(x, out, eps, N: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    r = tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK)[None, :]
    y = tl.load(x + r[:, None] * N + d, (d < N) & (r[:, None] < ROWS), other=0.0)
    tl.store(out + r, device.inverse_rms(y, N, eps))


@pytest.mark.parametrize("n", [512, 1536, 24, 128])
def test_inverse_rms(n: int) -> None:
    g = torch.Generator().manual_seed(n)
    scale = torch.tensor([1.0, 1e-30, 1e30, 1e-4, 3e38, 0.0, 1e-38, 7.0]).unsqueeze(1)
    x = torch.randn(8, n, generator=g).clamp(-1, 1) * scale
    out = torch.empty(8)
    _rms[(1,)](x, out, 1e-6, N=n, BLOCK=triton.next_power_of_2(n), ROWS=8)
    same(out, inverse_rms(x, 1e-6).flatten())


@triton.jit
def _turn(x, table, out, INVERSE: tl.constexpr):
    r = tl.arange(0, 8)[:, None]
    j, half = tl.arange(0, 64)[None, :], tl.arange(0, 32)[None, :]
    cos, sin = tl.load(table + r * 64 + half), tl.load(table + r * 64 + 32 + half)
    tl.store(out + r * 64 + j, device.rotate(tl.load(x + r * 64 + j), cos, sin, INVERSE, 64))


@pytest.mark.parametrize("inverse", [False, True])
def test_rotate(inverse: bool) -> None:
    g = torch.Generator().manual_seed(1)
    x, table = torch.randn(8, 64, generator=g), torch.randn(8, 64, generator=g)
    out = torch.empty(8, 64)
    _turn[(1,)](x, table, out, INVERSE=inverse)
    same(out, rotate(x, table, inverse=inverse))


@triton.jit
def _butterflies(x, out):
    place = tl.arange(0, 16)[:, None] * 128 + tl.arange(0, 128)[None, :]
    tl.store(out + place, device.hadamard128(tl.load(x + place)))


def test_hadamard() -> None:
    x = torch.randn(16, 128, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16).float()
    x[0] = 0.0
    x[1] = -x[1].abs() * 1e20
    out = torch.empty(16, 128)
    _butterflies[(1,)](x, out)
    same(out, hadamard128(x).float())
