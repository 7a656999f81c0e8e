"""The source of the CuTeDSL indexer on the host; imported in a process of its own (see `host_cutlass`)."""

from __future__ import annotations

import host_cutlass
import numpy as np
import torch
from host_device import Device, Fault

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


def differing(
    layout: str, lens: list[int], k: int, parts: int, seed: int = 3,
    weights: tuple[float, ...] = (-1.0, 0.5, 2.0), heads: int = 2, stages: int = 0, late: bool = False,
    restless: float = 0.0, shares: int = 0, most: int = 1 << 24, run: int = 0,
) -> str:  # fmt: skip
    """What is wrong with the lists of a call of small numbers that misses some pages: "" or text.

    `run`: tokens of a launch, all where it is 0.
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
    keys = found.decode_pages(cache, 64).double().numpy()
    order = rng.permutation(pages).astype(np.int32)
    table = np.where(rng.random(pages) < 0.1, -1, order).astype(np.int32)[None]
    codes = codes_e2m1(q) if mxfp4 else torch.from_numpy(q).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    host_cutlass.device = device = Device(seed, late, restless)
    out = np.full((tokens, k), -7, np.int32)
    candidates = rng.integers(0, 1 << 62, (run or tokens, parts * k))  # what memory happens to hold
    counts = np.zeros((run or tokens, launcher.WORKSPACE), np.int32)
    arrays = (
        codes, scales, w, cache.numpy(), np.array(lens, np.int32), np.zeros(tokens, np.int32), table, out,
        counts, candidates,
    )  # fmt: skip
    addresses = [host_cutlass.Int64(device.memory.add(np.ascontiguousarray(x))) for x in arrays]
    strides = (4, 4, 4 * pages, 4, cache.stride(0), 4 * heads, 4 * k)
    constants = (*program.constants[:2], stages or program.constants[2])
    from dsv4core_cuda.cutedsl.kernels.sparse_indexer import kernel

    for start in range(0, tokens, run or tokens):
        now = min(run or tokens, tokens - start)
        counts[:] = 0
        numbers = [host_cutlass.Int32(x) for x in (heads, pages, pages, k, start, shares or parts, most)]
        arguments = [*addresses, *numbers, *map(host_cutlass.Int64, strides), *constants]
        try:
            host_cutlass.launch(kernel, (parts, now, 1), program.threads, program.shared, arguments)
        except Fault as fault:
            return f"fault: {fault}"
    wrong: list[str] = []
    for t, length in enumerate(lens):
        scores = np.maximum(keys[order] @ q[t].T, 0) @ w[t].astype(np.float64)  # [pages, 64]
        scores = np.where(table[0][:, None] < 0, 0.0, scores).reshape(-1)[:length]
        best = np.sort(np.argsort(-scores, kind="stable")[:k])
        expected = np.concatenate([best, np.full(k - len(best), -1)])
        if not np.array_equal(out[t], expected):
            wrong.append(f"token {t}: {int((out[t] != expected).sum())} of {k} differ")
    return ", ".join(wrong)
