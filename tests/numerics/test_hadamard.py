"""Hadamard-128: the explicit matrix, and the bits of the ordered butterflies in numpy."""

import numpy as np
import pytest
import torch

from dsv4core.numerics.hadamard import hadamard128


def sylvester(order: int) -> np.ndarray:
    matrix = np.ones((1, 1))
    while matrix.shape[0] < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def butterflies(x: np.ndarray) -> np.ndarray:
    """In-place radix 2 with strides 1, 2, ..., 64, then one product; fp32 throughout."""
    y = x.astype(np.float32).copy()
    stride = 1
    while stride < 128:
        for start in range(0, 128, 2 * stride):
            a = y[..., start : start + stride].copy()
            b = y[..., start + stride : start + 2 * stride].copy()
            y[..., start : start + stride] = a + b
            y[..., start + stride : start + 2 * stride] = a - b
        stride *= 2
    return y * np.float32(128**-0.5)


def to_bf16_bits(x: np.ndarray) -> np.ndarray:
    bits = x.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bits_of_the_butterflies(dtype):
    x = (torch.randn(200, 128, generator=torch.Generator().manual_seed(0)) * 10).to(dtype)
    got = hadamard128(x)
    assert got.dtype == torch.bfloat16
    want = to_bf16_bits(butterflies(x.float().numpy()))
    assert np.array_equal(got.view(torch.int16).numpy().view(np.uint16), want)


def test_equals_the_sylvester_matrix():
    # Small integers: every butterfly is exact, so the matrix product rounds once like the transform.
    x = torch.randint(-8, 9, (64, 128), generator=torch.Generator().manual_seed(1)).float()
    exact = (x.double().numpy() @ sylvester(128)).astype(np.float32) * np.float32(128**-0.5)
    got = hadamard128(x).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(got, to_bf16_bits(exact))


def test_orthonormal_and_shapes():
    x = torch.randn(3, 5, 128).bfloat16()
    y = hadamard128(x)
    assert y.shape == x.shape
    assert torch.allclose(y.float().norm(dim=-1), x.float().norm(dim=-1), rtol=4e-3)
    assert torch.allclose(hadamard128(y).float(), x.float(), atol=0.06)
    assert hadamard128(torch.empty(0, 128).bfloat16()).shape == (0, 128)
