"""Programs at once against Triton's interpreter, one after another: the same bytes everywhere."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from dsv4core.kernels.triton._launch import lockstep


@triton.jit
def _ways(x, out, N: tl.constexpr):
    """Programs leave early, go different ways and loop a different number of times."""
    pid = tl.program_id(0) * 3 + tl.program_id(1)
    count = tl.load(x + pid)
    if count > 0:
        total = 0
        for i in range(count):
            total += i * pid
        if count % 2 == 0:
            tl.store(out + pid, total)
        else:
            tl.store(out + pid, -total - 1)


@triton.jit
def _own(x, N: tl.constexpr):
    """A program reads what it wrote itself before programs part."""
    pid = tl.program_id(0)
    tl.store(x + pid, tl.load(x + pid) + 1)
    for _i in range(tl.load(x + pid) % 4):
        tl.store(x + pid, tl.load(x + pid) * 2)


@triton.jit
def _shapes(x, out, N: tl.constexpr):
    """Reductions, scans, gathers, histograms, halves and products of blocks."""
    pid = tl.program_id(0)
    i = tl.arange(0, 8)[:, None]
    j = tl.arange(0, 16)[None, :]
    a = tl.load(x + pid * 128 + i * 16 + j)
    even, odd = tl.split(tl.reshape(a, (8, 8, 2)))
    b = tl.reshape(tl.join(even - odd, even + odd), (8, 16))
    b = b + tl.cumsum(a, 1) + tl.sum(a, 0)[None, :] - tl.max(a, 1)[:, None] * tl.min(b, 1)[:, None]
    b = tl.dot(b, tl.trans(a), input_precision="ieee")
    index = tl.broadcast_to(tl.arange(0, 8)[None, :] ^ 5, (8, 8))
    b = tl.gather(b, index, 1) + tl.sum(tl.sum(b, 0), 0) + tl.sum(b)
    tl.store(out + pid * 64 + i * 8 + tl.arange(0, 8)[None, :], b)
    digits = tl.reshape(tl.abs(a * 5).to(tl.int32), (128,))
    counts = tl.histogram(digits, 8, mask=digits < 7)
    tl.store(out + 6 * 64 + pid * 8 + tl.arange(0, 8), counts.to(tl.float32))


@triton.jit
def _rows(x, at, out, N: tl.constexpr):
    """Rows at addresses of their own: whole ones, parts, every other value, backwards, some over others."""
    pid = tl.program_id(0)
    i = tl.arange(0, 8)
    j = tl.arange(0, 16)[None, :]
    start = tl.load(at + pid * 8 + i)
    row = x + start[:, None]
    live = (start >= 0)[:, None]
    a = tl.load(row + j, live & (j < 11), other=7) + tl.load(row + 3 + j, live, other=1)
    a += tl.load(row + 2 * j, live & (j % 2 == 0), other=2) + tl.load(row + (15 - j), live, other=3)
    a += tl.load(row + j, live & (j >= i[:, None]), other=4) + tl.load(row + j, live & (j < 0), other=5)
    a += tl.load(row + (i[:, None] + j), live, other=6) + tl.load(x + j)
    byte = (row + 1).to(tl.pointer_type(tl.uint8), bitcast=True) + 1
    byte = byte[:, None, :] + 4 * tl.arange(0, 2)[None, :, None]
    a += tl.sum(tl.load(byte, live[:, :, None]).to(tl.int32), 1)
    target = out + (pid * 272 + i * 24)[:, None]
    tl.store(target + j, a, live & (j >= 2))
    tl.store(target + 20 + j, -a, live & (i != 3)[:, None])
    tl.store(target + 40 + 2 * j, a + 1, live & (j < i[:, None]))


@triton.jit
def _apart(x, out, N: tl.constexpr):
    """Pointers that are not aligned."""
    i = tl.arange(0, 8)[:, None]
    j = tl.arange(0, 16)[None, :]
    place = x.to(tl.pointer_type(tl.uint8), bitcast=True) + 1 + i * 3
    target = out.to(tl.pointer_type(tl.uint8), bitcast=True) + 2 + i * 65
    place, target = place.to(x.dtype, bitcast=True), target.to(x.dtype, bitcast=True)
    tl.store(target + j, tl.load(place + j, (i != 2) & (j < 20), other=9), (i != 5) & (j < 20))


@triton.jit
def _atomic(x, N: tl.constexpr):
    """What only single programs can do."""
    tl.store(x + 1 + tl.program_id(0), tl.program_id(0))
    tl.atomic_add(x, 1)


def both(kernel: Any, grid: tuple[int, ...], *tensors: torch.Tensor) -> list[torch.Tensor]:
    mine, other = [t.clone() for t in tensors], [t.clone() for t in tensors]
    lockstep.run(kernel, grid, tuple(mine), {"N": 1})
    kernel[grid](*other, N=1)
    for a, b in zip(mine, other, strict=True):
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))
    return mine


def test_programs_go_their_own_ways() -> None:
    x = torch.randint(-2, 9, (120,), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    _, out = both(_ways, (40, 3), x, torch.full((120,), 77, dtype=torch.int32))
    assert (out[x <= 0] == 77).all()


def test_what_was_stored_before_a_split_is_put_back() -> None:
    both(_own, (50,), torch.arange(50, dtype=torch.int32))


@pytest.mark.parametrize("programs", [1, 6])
def test_blocks(programs: int) -> None:
    x = torch.randn(6 * 128, generator=torch.Generator().manual_seed(programs))
    both(_shapes, (programs,), x, torch.zeros(6 * 64 + 48))


@pytest.mark.parametrize("programs", [1, 5])
def test_rows(programs: int) -> None:
    made = torch.Generator().manual_seed(programs)
    x = torch.randint(-1000, 1000, (400,), generator=made, dtype=torch.int32)
    at = torch.randint(0, 350, (programs * 8,), generator=made, dtype=torch.int32)
    at[::5] = -1
    both(_rows, (programs,), x, at, torch.zeros(programs * 272, dtype=torch.int32))
    both(_rows, (programs,), x, torch.full_like(at, -1), torch.zeros(programs * 272, dtype=torch.int32))


def test_rows_that_are_not_aligned() -> None:
    x = torch.randint(-1000, 1000, (100,), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    both(_apart, (1,), x, torch.zeros(200, dtype=torch.int32))


def test_what_is_not_prepared_runs_alone() -> None:
    (x,) = both(_atomic, (5,), torch.zeros(6, dtype=torch.int32))
    assert x.tolist() == [5, 0, 1, 2, 3, 4]
    assert _atomic in lockstep._alone


def test_the_language_is_as_before_afterwards() -> None:
    before = (tl.reduce, tl.core.reduce, tl.tensor.__bool__)
    test_programs_go_their_own_ways()
    assert before == (tl.reduce, tl.core.reduce, tl.tensor.__bool__)


def test_threads_take_turns() -> None:
    x = torch.randn(6 * 128, generator=torch.Generator().manual_seed(5))
    expected = torch.zeros(6 * 64 + 48)
    lockstep.run(_shapes, (6,), (x, expected), {"N": 1})
    outs = [torch.zeros_like(expected) for _ in range(16)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(lockstep.run, _shapes, (6,), (x, out), {"N": 1}) for out in outs]:
                done.result()
    finally:
        sys.setswitchinterval(before)
    assert all(torch.equal(out, expected) for out in outs)
