"""Scores of index entries and the k best of them in one CuTeDSL kernel: no scores in memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from dsv4core.kernels.triton._launch import alignment, pieces, value_checks
from dsv4core.kernels.triton._scores import check_queries
from dsv4core_cuda.cutedsl._build import Program
from dsv4core_cuda.cutedsl._driver import processors
from dsv4core_cuda.cutedsl._measured import Forms, chosen

FORMS = ("index_fp8", "index_fp8_ue8m0x4", "index_fp8_hadamard_f32", "index_mxfp4", "index_mxfp4_hadamard")
RING = 24 * 4352
"""Bytes of pages that a block has under way: 24 of mxfp4, 12 of fp8."""
GROUPS = 4
"""Groups of threads of a block that score pages, each with stages of the ring to itself.

A barrier's parity says odd or even: two groups that took a stage in turn could mistake each other's rounds.
"""
SHARED = 1024 + 16384 + RING + 8 * 8192 + 8 * 1024 + 4 * (2048 + 64) + 4 * 64 + 1024
WHOLE = 8192 + 4 * 64 + 64 + 24 * 512
"""Bytes of shared memory for products of whole numbers, in mxfp4."""
CLEARED = 128
"""Threads that write 16 bytes of zeros each."""
WORKSPACE = 1024 + 4
"""i32 that the blocks of a token share."""
MOST_K, MOST_HEADS, MOST_PAGES = 2048, 64, 1 << 24
MOST_RUN = 65535
"""Tokens of a launch: what a grid has along y."""
MOST_SHARE = 512
"""Pages of a token that a block takes at most: a long context among short ones is not one block's alone.

Blocks for the pages that a table could have, and contexts do not, start and end: about a microsecond each.
"""
START = 29
"""What starting and ending a block takes, in pages."""


@cache
def program(mxfp4: bool, byte: bool) -> Program:
    """The kernel for keys in mxfp4, or in fp8 with a scale that is a byte or f32."""
    stages = RING // (64 * ((64 if mxfp4 else 128) + 4)) // GROUPS * GROUPS
    constants = (mxfp4, byte, stages)
    return Program(
        "sparse_indexer", "q" * 10 + "i" * 7 + "q" * 7, constants, 640, SHARED + mxfp4 * WHOLE,
        alone=True, early=True,
    )  # fmt: skip


@cache
def clear() -> Program:
    """Zeros for what the blocks of a token share."""
    return Program("clear", "qi", (CLEARED,), CLEARED, early=True)


def programs(arch: str) -> dict[str, Program]:
    """A program of every form that an architecture has: its matrix products are SM90's."""
    if arch != "sm_90a":
        return {}
    return {form: program(form.startswith("index_mxfp4"), form == "index_fp8_ue8m0x4") for form in FORMS}


def splits(tokens: int, pages: int, device: int) -> int:
    """Blocks of a token of so many pages: those that take the least time, waves of all blocks counted."""
    available = processors(device)

    def time(parts: int) -> float:
        return pieces(parts * tokens, available) * (pages / parts + START)

    return min((max(1, waves * available // tokens) for waves in range(1, 9)), key=time)


def bind(fallback: Callable[..., Tensor], forms: Forms, arch: str) -> Callable[..., Tensor]:
    """The op: calls of `forms` by the kernel here, anything else, and checked mode, by `fallback`."""

    def sparse_indexer(
        q: Tensor, q_scales: Tensor | None, weights: Tensor, k_cache: Tensor, context_lens: Tensor,
        token_to_req: Tensor, block_table: Tensor, *, rows: int, layout: str, k: int, workspace_bytes: int,
        rotate: str = "none",
    ) -> Tensor:  # fmt: skip
        """The k entries with the highest scores, ascending; ties to the lower index, -1 behind.

        Tokens whose lists do not fit `workspace_bytes` go in equal runs, one behind the other.
        """
        tokens, heads, width = q.shape[0], q.shape[1], block_table.shape[1]
        at_once = min(workspace_bytes // (4 * WORKSPACE + 8 * max(k, 1)), MOST_RUN)
        if (
            not chosen(forms, layout, tokens) or not 1 <= k <= MOST_K or heads > MOST_HEADS or rows != 64
            or not at_once or alignment(k_cache) < 16 or block_table.shape[0] == 0 or width > MOST_PAGES
            or not _reachable(q, q_scales) or value_checks(q)
        ):  # fmt: skip
            return fallback(
                q, q_scales, weights, k_cache, context_lens, token_to_req, block_table,
                rows=rows, layout=layout, k=k, workspace_bytes=workspace_bytes, rotate=rotate,
            )  # fmt: skip
        check_queries("sparse_indexer", q, q_scales, layout, rotate)
        run = max(1, pieces(tokens, max(1, pieces(tokens, at_once))))
        room = (workspace_bytes // run - 4 * WORKSPACE) // (8 * k)  # blocks of a token
        shares = min(splits(run, min(width, MOST_SHARE), q.device.index), room)
        parts = max(shares, min(pieces(width, MOST_SHARE), room))
        out = context_lens.new_empty(tokens, k)
        counts = context_lens.new_empty(run, WORKSPACE)
        candidates = q.new_empty(run, parts * k, dtype=torch.int64)
        launch = program(q_scales is not None, layout == "index_fp8_ue8m0x4").on(q.device.index)
        for begin in range(0, tokens, run):
            now = min(run, tokens - begin)
            quads = now * WORKSPACE // 4
            clear().on(q.device.index)((pieces(quads, CLEARED), 1, 1), counts.data_ptr(), quads)
            launch(
                (parts, now, 1),
                q.data_ptr(), 0 if q_scales is None else q_scales.data_ptr(), weights.data_ptr(),
                k_cache.data_ptr(), context_lens.data_ptr(), token_to_req.data_ptr(), block_table.data_ptr(),
                out.data_ptr(), counts.data_ptr(), candidates.data_ptr(), heads, width, k_cache.shape[0], k,
                begin, shares, MOST_SHARE, 4 * context_lens.stride(0), 4 * token_to_req.stride(0),
                4 * block_table.stride(0), 4 * block_table.stride(1), k_cache.stride(0),
                4 * weights.stride(0), 4 * out.stride(0),
            )  # fmt: skip
        return out

    return sparse_indexer


def _reachable(q: Tensor, scales: Tensor | None) -> bool:
    """Whether four bytes of codes and of scales can be read at once."""
    return all(x is None or (x.is_contiguous() and x.data_ptr() % 4 == 0) for x in (q, scales))
