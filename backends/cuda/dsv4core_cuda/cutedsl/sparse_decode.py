"""Attention of few tokens straight over pages of `fp8_ds_mla`: a cluster a token and block of heads."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from dsv4core_cuda.cutedsl._build import Program

KEYS = 128
CLUSTER = 8
THREADS = 256


@cache
def program(rows: int, extra_rows: int, heads: int, blocks: int, several: int, parts: int) -> Program:
    """The kernel for pages of so many rows, heads of a block and blocks of a cluster."""
    shared = KEYS * 1024 + heads * (1024 + 2 * KEYS + 64 + 12 * blocks + 4)
    return Program(
        "sparse_decode", "q" * 10 + "f" + "q" * 8 + "i" * 7, (rows, extra_rows, heads, blocks, several, parts), THREADS,
        shared=shared, cluster=blocks,
    )  # fmt: skip


def segments(width: int) -> tuple[int, int]:
    """How a row's keys are cut, whatever the batch: segments, and tiles of 128 keys in each."""
    tiles = max(1, -(-width // KEYS))
    each = -(-tiles // CLUSTER)
    return -(-tiles // each), each


def decode(
    q: Tensor, cache: Tensor, slots: Tensor, lens: Tensor, extra: Tensor | None, extra_slots: Tensor | None,
    extra_lens: Tensor | None, sink: Tensor, out: Tensor, *, scale: float, rows: int, extra_rows: int,
    heads_of_block: int = 0, several: int = 1, parts: int = 1,
) -> Tensor:  # fmt: skip
    """`sparse_decode` over pages that are 16-byte aligned, lists whose rows are contiguous."""
    tokens, heads, _ = q.shape
    width, more = slots.shape[1], 0
    if extra is None or extra_slots is None or extra_lens is None:
        extra, extra_slots, extra_lens, extra_rows = cache, slots, lens, rows
    else:
        more = extra_slots.shape[1]
    count, tiles = segments(width + more)
    blocks = -(-count // several)
    lse = torch.empty(tokens, heads, dtype=torch.float32, device=q.device)
    program(rows, extra_rows, heads_of_block, blocks, several, parts).on(q.device.index)(
        (blocks, heads // heads_of_block, tokens),
        q.data_ptr(), cache.data_ptr(), slots.data_ptr(), lens.data_ptr(), extra.data_ptr(),
        extra_slots.data_ptr(), extra_lens.data_ptr(), sink.data_ptr(), out.data_ptr(), lse.data_ptr(), scale,
        q.stride(0), q.stride(1), out.stride(0), out.stride(1), cache.stride(0), extra.stride(0),
        slots.stride(0), extra_slots.stride(0), cache.shape[0] * rows, extra.shape[0] * extra_rows,
        width, more, heads, tiles, count,
    )  # fmt: skip
    return lse
