"""Attention of few tokens straight over pages of `fp8_ds_mla`: a cluster for a token and some heads."""

from __future__ import annotations

from functools import cache

from torch import Tensor

from dsv4core_cuda.cutedsl._build import Program
from dsv4core_cuda.cutedsl._driver import processors
from dsv4core_cuda.flashmla import Pages

KEYS = 128
"""Keys of a tile."""
SEGMENTS = 8
"""Segments of a row at most: a cluster has up to eight blocks everywhere."""
THREADS = 256
SIZES = (16, 32)
"""Heads that a block may have."""
ARGUMENTS = "q" * 10 + "f" + "q" * 8 + "i" * 8


@cache
def program(heads: int, blocks: int) -> Program:
    """The kernel for so many heads of a block and blocks of a cluster."""
    fold = heads * (12 * blocks + 4 * (blocks + 1))
    if heads == 64:
        return Program("sparse_decode_wide", ARGUMENTS, (blocks,), 512, 2 * 64 * 1024 + 65536 + 16384 + 1024 + fold, blocks, True)
    shared = KEYS * 1024 + heads * (1024 + 2 * KEYS + 96) + fold
    return Program("sparse_decode", ARGUMENTS, (heads, blocks), THREADS, shared, blocks)


def segments(width: int, most: int = SEGMENTS) -> tuple[int, int]:
    """How a row's keys are cut, whatever the batch: segments, and tiles of each."""
    tiles = max(1, -(-width // KEYS))
    each = -(-tiles // most)
    return -(-tiles // each), each


def cut(tokens: int, heads: int, blocks: int, available: int) -> int:
    """Heads of a block: how the work meets so many processors, of which clusters leave a tenth idle.

    Blocks of 16 are done sooner, blocks of 32 decode each row half as often. No bit depends on it.
    """
    few = tokens * (heads // 16) * blocks <= available * 9 // 10
    return 16 if few or heads % 32 else 32


def programs(arch: str) -> dict[str, Program]:
    """A program of every number of heads, for ahead-of-time compilation; its matrix products are SM90's."""
    blocks, _ = segments(640)
    return {f"{n} heads a block": program(n, blocks) for n in SIZES} if arch == "sm_90a" else {}


def decode(
    q: Tensor, swa: Pages, extra: Pages | None, sink: Tensor, out: Tensor, scale: float,
    size: int = 0, most: int = 0,
) -> Tensor:  # fmt: skip
    """`sparse_decode` over pages that are 16-byte aligned; `size` is a `cut` of one's own, to measure."""
    tokens, heads, _ = q.shape
    more = extra or swa
    width, extra_width = swa.slots.shape[1], extra.slots.shape[1] if extra else 0
    device = q.device.index
    if size == 64:
        all_tiles = -(-(width + extra_width) // 64)
        tiles = -(-all_tiles // (most or 8))
        blocks = -(-all_tiles // tiles)
    else:
        blocks, tiles = segments(width + extra_width, most or SEGMENTS)
        size = size or cut(tokens, heads, blocks, processors(device))
    lse = sink.new_empty(tokens, heads)
    program(size, blocks).on(device)(
        (blocks, heads // size, tokens),
        q.data_ptr(), swa.cache.data_ptr(), swa.slots.data_ptr(), swa.lens.data_ptr(), more.cache.data_ptr(),
        more.slots.data_ptr(), more.lens.data_ptr(), sink.data_ptr(), out.data_ptr(), lse.data_ptr(), scale,
        q.stride(0), q.stride(1), out.stride(0), out.stride(1), swa.cache.stride(0), more.cache.stride(0),
        swa.slots.stride(0), more.slots.stride(0), swa.cache.shape[0] * swa.rows,
        more.cache.shape[0] * more.rows, width, extra_width, swa.rows, more.rows, heads, tiles,
    )  # fmt: skip
    return lse
