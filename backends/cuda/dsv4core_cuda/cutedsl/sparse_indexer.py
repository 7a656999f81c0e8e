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
CLEARED = 128
"""Threads that write 16 bytes of zeros each."""
WORKSPACE = 1024 + 4
"""i32 that the blocks of a token share."""
MOST_TOKENS, MOST_K, MOST_HEADS, MOST_PAGES = 64, 2048, 64, 1 << 24
MOST_SHARE = 1024
"""Pages of a token that a block takes at most: a long context among short ones is not one block's alone."""
WAVE = 0.03
"""What a wave of blocks more counts, as a share of the work."""


@cache
def program(mxfp4: bool, byte: bool) -> Program:
    """The kernel for keys in mxfp4, or in fp8 with a scale that is a byte or f32."""
    stages = RING // (64 * ((64 if mxfp4 else 128) + 4)) // GROUPS * GROUPS
    constants = (mxfp4, byte, stages)
    return Program(
        "sparse_indexer", "q" * 10 + "i" * 6 + "q" * 7, constants, 640, SHARED, alone=True, early=True
    )


@cache
def clear() -> Program:
    """Zeros for what the blocks of a token share."""
    return Program("clear", "qi", (CLEARED,), CLEARED, early=True)


def programs(arch: str) -> dict[str, Program]:
    """A program of every form that an architecture has: its matrix products are SM90's."""
    if arch != "sm_90a":
        return {}
    return {form: program(form.startswith("index_mxfp4"), form == "index_fp8_ue8m0x4") for form in FORMS}


def splits(tokens: int, device: int) -> int:
    """Blocks of a token: as many as leave few multiprocessors without a block in the last wave of all.

    A wave more costs what starting and ending a block does, some hundredths of its time at a million entries.
    """
    available = processors(device)
    each = [max(1, waves * available // tokens) for waves in range(1, 5)]

    def idle(parts: int) -> float:
        waves = -(-parts * tokens // available)
        return waves * available / (parts * tokens) + WAVE * waves

    return min(each, key=idle)


def bind(fallback: Callable[..., Tensor], forms: Forms, arch: str) -> Callable[..., Tensor]:
    """The op: few tokens of `forms` by the kernel here, anything else, and checked mode, by `fallback`."""

    def sparse_indexer(
        q: Tensor, q_scales: Tensor | None, weights: Tensor, k_cache: Tensor, context_lens: Tensor,
        token_to_req: Tensor, block_table: Tensor, *, rows: int, layout: str, k: int, workspace_bytes: int,
        rotate: str = "none",
    ) -> Tensor:  # fmt: skip
        """The k entries with the highest scores, ascending; ties to the lower index, -1 behind."""
        tokens, heads = q.shape[0], q.shape[1]
        shares = splits(max(tokens, 1), q.device.index) if tokens <= MOST_TOKENS else 1
        room = workspace_bytes // max(tokens, 1) - 4 * WORKSPACE
        parts = max(shares, min(pieces(block_table.shape[1], MOST_SHARE), room // (8 * max(k, 1))))
        if (
            not chosen(forms, layout, tokens) or tokens > MOST_TOKENS or not 1 <= k <= MOST_K
            or heads > MOST_HEADS or rows != 64 or 8 * parts * k > room or alignment(k_cache) < 16
            or block_table.shape[0] == 0 or block_table.shape[1] > MOST_PAGES
            or not _reachable(q, q_scales) or value_checks(q)
        ):  # fmt: skip
            return fallback(
                q, q_scales, weights, k_cache, context_lens, token_to_req, block_table,
                rows=rows, layout=layout, k=k, workspace_bytes=workspace_bytes, rotate=rotate,
            )  # fmt: skip
        check_queries("sparse_indexer", q, q_scales, layout, rotate)
        out = context_lens.new_empty(tokens, k)
        counts = context_lens.new_empty(tokens, WORKSPACE)
        candidates = q.new_empty(tokens, parts * k, dtype=torch.int64)
        quads = tokens * WORKSPACE // 4
        clear().on(q.device.index)((pieces(quads, CLEARED), 1, 1), counts.data_ptr(), quads)
        program(q_scales is not None, layout == "index_fp8_ue8m0x4").on(q.device.index)(
            (parts, tokens, 1),
            q.data_ptr(), 0 if q_scales is None else q_scales.data_ptr(), weights.data_ptr(),
            k_cache.data_ptr(), context_lens.data_ptr(), token_to_req.data_ptr(), block_table.data_ptr(),
            out.data_ptr(), counts.data_ptr(), candidates.data_ptr(), heads, block_table.shape[1],
            k_cache.shape[0], k, shares, MOST_SHARE, 4 * context_lens.stride(0), 4 * token_to_req.stride(0),
            4 * block_table.stride(0), 4 * block_table.stride(1), k_cache.stride(0), 4 * weights.stride(0),
            4 * out.stride(0),
        )  # fmt: skip
        return out

    return sparse_indexer


def _reachable(q: Tensor, scales: Tensor | None) -> bool:
    """Whether four bytes of codes and of scales can be read at once."""
    return all(x is None or (x.is_contiguous() and x.data_ptr() % 4 == 0) for x in (q, scales))
