"""Hashed tensors: the same bits whatever the shape, chunk or type, and near a normal distribution."""

import hashlib

import pytest
import torch

from dsv4core import synthetic
from dsv4core.synthetic import grid_step, hash_embedding, hash_normal


def splitmix(x: int) -> int:
    mask = (1 << 64) - 1
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def test_values_are_the_written_formula_in_unbounded_integers():
    seed, stream, std = 7, "a stream", 0.0245
    got = hash_normal((3, 5), seed, stream, std).flatten().tolist()
    key = int.from_bytes(hashlib.sha256(b"7/a stream").digest()[:8], "little")
    step = grid_step(std)
    factor = round(std / step / synthetic.SUM_STD * 2**24)
    for index, value in enumerate(got):
        z = splitmix((index * 0x9E3779B97F4A7C15 + key) & ((1 << 64) - 1))
        total = sum((z >> shift) & 0xFFFF for shift in (0, 16, 32, 48)) - 2 * 65535
        assert value == ((total * factor + (1 << 23)) >> 24) * step


def test_pinned_bits():
    values = hash_normal((300_000,), 0, "pinned", 1.0)
    digest = hashlib.sha256(values.numpy().tobytes()).hexdigest()
    assert digest == "26bbc6304a85e2344e7cd4b89b9ceca96735b6446a21309f5dff0f1a6bae6afb"


def test_chunks_and_shapes_change_nothing(monkeypatch):
    whole = hash_normal((1000,), 1, "s", 1.0)
    monkeypatch.setattr(synthetic, "CHUNK", 77)
    assert torch.equal(hash_normal((10, 100), 1, "s", 1.0).flatten(), whole)
    assert torch.equal(hash_normal((1000,), 1, "s", 1.0, dtype=torch.bfloat16).float(), whole)


def test_distribution():
    x = hash_normal((200_000,), 0, "d", 1.0).double()
    assert abs(x.mean()) < 8e-3
    assert abs(x.std() - 1) < 8e-3
    assert 2.6 < (x**4).mean() / (x**2).mean() ** 2 < 3.1
    y = hash_normal((200_000,), 1, "d", 1.0).double()
    for other in (y, x.roll(1), hash_normal((200_000,), 0, "e", 1.0).double()):
        assert abs(torch.corrcoef(torch.stack((x, other)))[0, 1]) < 9e-3


@pytest.mark.parametrize("std", [1.0, 0.0110, 0.0245, 0.2313, 36.0, 0.5])
def test_grid_is_bounded_and_exact_in_bf16(std):
    x = hash_normal((100_000,), 3, "grid", std)
    n = x / grid_step(std)
    assert torch.equal(n, n.round())
    assert n.abs().max() <= 127
    assert torch.equal(x.bfloat16().float(), x)
    assert abs(x.std() / std - 1) < 0.01


def test_matmul_of_grid_values_does_not_depend_on_the_order():
    a = hash_normal((8, 512), 0, "a", 1.0, 1 / 16)
    b = hash_normal((512, 16), 0, "b", 0.02)
    order = torch.randperm(512)
    assert torch.equal(a @ b, (a.double() @ b.double()).float())
    assert torch.equal(a @ b, a[:, order] @ b[order])


@pytest.mark.parametrize("step", [0.3, 1 / 64, 0.0])
def test_impossible_steps_are_refused(step):
    with pytest.raises(ValueError, match="power of two"):
        hash_normal((4,), 0, "x", 1.0, step)


def test_embedding():
    tokens = torch.tensor([3, 255, 3], dtype=torch.uint8)
    rows = hash_embedding(tokens, 32, seed=5)
    assert rows.dtype == torch.bfloat16
    assert rows.shape == (3, 32)
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[1])
