"""Gather rows by a CuTeDSL kernel: a warp looks up a row, then has all of it under way at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from dsv4core.kernels.triton._launch import alignment, pieces, value_checks
from dsv4core_cuda.cutedsl._build import Program
from dsv4core_cuda.cutedsl._measured import Forms, chosen

WARPS = 4


@cache
def program(rows: int, whole: bool) -> Program:
    """The kernel for pages of so many rows."""
    constants = (rows, whole, WARPS)
    return Program("gather_rows", "q" * 5 + "iiii" + "q" * 7, constants, 32 * WARPS, early=True)


def programs(arch: str) -> dict[str, Program]:
    """A program of every form that an architecture has, for ahead-of-time compilation."""
    return {"fp8_ds_mla whole": program(64, True), "fp8_ds_mla last": program(64, False)}


def bind(fallback: Callable[..., None], forms: Forms, arch: str) -> Callable[..., None]:
    """The op: `forms` by the kernel here, anything else, and checked mode, by `fallback`."""

    def dequantize_and_gather_k_cache(
        out: Tensor, k_cache: Tensor, seq_lens: Tensor, gather_lens: Tensor | None, block_table: Tensor, *,
        rows: int, offset: int, layout: str,
    ) -> None:  # fmt: skip
        """Dequantise rows seq_len - g .. seq_len - 1 of every request into out[b, offset : offset + g]."""
        whole = gather_lens is None
        places = out.data_ptr() | 2 * out.stride(0) | 2 * out.stride(1)
        room = max(0, out.shape[1] - offset)
        if (
            not chosen(forms, f"{layout} {'whole' if whole else 'last'}", out.shape[0] * room)
            or alignment(k_cache) < 16 or places % 16 or out.dtype != torch.bfloat16
            or not k_cache.shape[0] or not block_table.shape[1] or value_checks(out)
        ):  # fmt: skip
            return fallback(
                out, k_cache, seq_lens, gather_lens, block_table, rows=rows, offset=offset, layout=layout
            )
        lens = seq_lens if gather_lens is None else gather_lens
        program(rows, whole).on(out.device.index)(
            (pieces(room, WARPS), out.shape[0], 1),
            out.data_ptr(), k_cache.data_ptr(), seq_lens.data_ptr(), lens.data_ptr(), block_table.data_ptr(),
            room, block_table.shape[1], k_cache.shape[0], offset, 2 * out.stride(0), 2 * out.stride(1),
            k_cache.stride(0), 4 * seq_lens.stride(0), 4 * lens.stride(0), 4 * block_table.stride(0),
            4 * block_table.stride(1),
        )  # fmt: skip
        return None

    return dequantize_and_gather_k_cache
