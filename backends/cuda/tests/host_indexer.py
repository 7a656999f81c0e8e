"""The source of the CuTeDSL indexer on the host; imported in a process of its own (see `host_cutlass`)."""

from __future__ import annotations

import host_cutlass
import numpy as np
import torch
from host_device import Device, Fault
from host_launch import launch, launched
from host_numbers import Int32, Int64, from_bits, mul_clamped
from host_products import products_of

from dsv4core.layout import get_layout
from dsv4core_cuda.cutedsl import sparse_indexer as launcher

host_cutlass.install()
SMALL = np.array([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0])
"""Values whose products and sums are exact in every layout: scores tie, and have one value in any order."""


def codes_e2m1(values: np.ndarray) -> np.ndarray:
    """Two codes a byte, the first in its low half."""
    magnitudes = np.searchsorted([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0], np.abs(values))
    codes = magnitudes + 8 * (values < 0)
    return (codes[..., 0::2] + 16 * codes[..., 1::2]).astype(np.uint8)


def any_codes(rng: np.random.Generator, spread: int, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes of rows, -0 among them, and scales up to so many powers of two apart, as far somewhere."""
    scales = 121 + rng.integers(0, spread + 1, (*shape, 4))
    scales[..., 0, :2] = 121, 121 + spread
    return rng.integers(0, 256, (*shape, 64), dtype=np.uint8), scales.astype(np.uint8)


def any_pages(rng: np.random.Generator, spreads: tuple[int, ...], pages: int) -> torch.Tensor:
    """Pages of such rows, spreads by turns; a negative one stands for bytes that are no scales."""
    found = np.zeros((pages, 64 * 68), np.uint8)
    for i in range(pages):
        spread = spreads[i % len(spreads)]
        codes, scales = any_codes(rng, abs(spread), 64)
        if spread < 0:
            scales[rng.integers(0, 64, 8)] = rng.choice([0, 1, 254, 255], (8, 4))
        found[i] = np.concatenate([codes.reshape(-1), scales.reshape(-1)])
    return torch.from_numpy(found)


def decoded(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The numbers of such rows."""
    halves = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12])
    values = halves[np.stack([codes & 15, codes >> 4], -1)].reshape(*codes.shape[:-1], 4, 32) / 2
    return (values * np.exp2(scales[..., None].clip(1, 254).astype(np.float64) - 127)).reshape(
        *codes.shape[:-1], 128
    )


def bytes_differing() -> str:
    """What is wrong with codes as bytes, at every place and shift, and with parts that are positive."""
    from dsv4core_cuda.cutedsl.kernels import _index_whole as kernels

    halves = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]
    wrong: list[str] = []
    for shift in range(kernels.SPREAD):
        for code in range(16):
            codes = [(code + 3 * i) % 16 for i in range(8)]
            word = Int32(sum(c << 4 * i for i, c in enumerate(codes)))
            found = kernels.whole(word, kernels.table(shift))
            if np.array(found, np.int64).astype(np.int32).view(np.int8).tolist() != [
                halves[c] << shift for c in codes
            ]:
                wrong.append(f"{codes} times {1 << shift}")
    most = 128 * (12 << 3) ** 2
    for x in (0, 1, 2, 12345, most, -1, -2, -most):
        positive = mul_clamped(from_bits(x), 2.0**127)
        if positive != max(x, 0) / 2**22:
            wrong.append(f"{x} becomes {positive}")
    return ", ".join(wrong)


def differing(
    layout: str, lens: list[int], k: int, parts: int, seed: int = 3,
    weights: tuple[float, ...] = (-1.0, 0.5, 2.0), heads: int = 2, stages: int = 0, late: bool = False,
    restless: float = 0.0, shares: int = 0, most: int = 1 << 24, run: int = 0,
    spreads: tuple[int, ...] = (), capacity: int = 8192,
) -> str:  # fmt: skip
    """What is wrong with the lists of a call of small numbers that misses some pages: "" or text.

    `run`: tokens of a launch, all where it is 0. `spreads`: of mxfp4, any codes, and scales of a row up to so
    many powers of two apart, one number for queries and those of pages by turns, and products are
    of bytes where they all lie within 3 and weights are of any usual size. `capacity`: entries of a list.
    """
    rng = np.random.default_rng(seed)
    tokens, pages = len(lens), max(1, -(-max(lens) // 64))
    mxfp4 = layout.startswith("index_mxfp4")
    program = launcher.program(mxfp4, layout == "index_fp8_ue8m0x4")
    q = rng.choice(SMALL, (tokens, heads, 128))
    scales = np.full((tokens, heads, 4), 127, np.uint8)
    w = rng.choice(weights, (tokens, heads)).astype(np.float32)
    found = get_layout(layout)
    cache = found.encode_pages(torch.from_numpy(rng.choice(SMALL, (pages, 64, 128))).float())
    order = rng.permutation(pages).astype(np.int32)
    if spreads:
        q, scales = any_codes(rng, spreads[0], tokens, heads)
        cache[order, : 64 * 68] = any_pages(rng, spreads[1:], pages)
        bytes_ = cache[:, : 64 * 68].numpy()  # numbers beyond f32, too
        keys = decoded(bytes_[:, :4096].reshape(-1, 64, 64), bytes_[:, 4096:].reshape(-1, 64, 4))
    else:
        keys = found.decode_pages(cache, 64).double().numpy()
    table = np.where(rng.random(pages) < 0.1, -1, order).astype(np.int32)[None]
    if spreads:
        codes, q = q, decoded(q, scales)
    else:
        codes = (
            codes_e2m1(q) if mxfp4 else torch.from_numpy(q).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
        )
    products_of.clear()
    launched.device = device = Device(seed, late, restless)
    out = np.full((tokens, k), -7, np.int32)
    candidates = rng.integers(0, 1 << 62, (run or tokens, parts * k))  # what memory happens to hold
    counts = np.zeros((run or tokens, launcher.WORKSPACE), np.int32)
    arrays = (
        codes, scales, w, cache.numpy(), np.array(lens, np.int32), np.zeros(tokens, np.int32), table, out,
        counts, candidates,
    )  # fmt: skip
    addresses = [Int64(device.memory.add(np.ascontiguousarray(x))) for x in arrays]
    strides = (4, 4, 4 * pages, 4, cache.stride(0), 4 * heads, 4 * k)
    constants = (*program.constants[:2], stages or program.constants[2])
    from dsv4core_cuda.cutedsl.kernels import sparse_indexer

    sparse_indexer.CAPACITY = capacity
    for start in range(0, tokens, run or tokens):
        now = min(run or tokens, tokens - start)
        counts[:] = 0
        numbers = [Int32(x) for x in (heads, pages, pages, k, start, shares or parts, most)]
        arguments = [*addresses, *numbers, *map(Int64, strides), *constants]
        try:
            launch(sparse_indexer.kernel, (parts, now, 1), program.threads, program.shared, arguments)
        except Fault as fault:
            return f"fault: {fault}"
    wrong: list[str] = []
    usual = spreads and spreads[0] <= 3 and np.abs(w).max() < 1e20
    as_bytes = 0
    for t, length in enumerate(lens):
        scores = np.maximum(keys[order] @ q[t].T, 0) @ w[t].astype(np.float64)  # [pages, 64]
        scores = np.where(table[0][:, None] < 0, 0.0, scores).reshape(-1)[:length].astype(np.float32)
        if usual and length > k:
            narrow = [0 <= spreads[1 + i % (len(spreads) - 1)] <= 3 for i in range(-(-length // 64))]
            as_bytes += int((np.array(narrow) & (table[0][: len(narrow)] >= 0)).sum())
        best = np.sort(np.argsort(-scores, kind="stable")[:k])
        expected = np.concatenate([best, np.full(k - len(best), -1)])
        if not np.array_equal(out[t], expected):
            wrong.append(f"token {t}: {int((out[t] != expected).sum())} of {k} differ")
    if spreads and products_of["bytes"] != as_bytes:
        wrong.append(f"{products_of['bytes']} pages as bytes, not {as_bytes}")
    return ", ".join(wrong)
