"""Query norm, RoPE and key insert by a CuTeDSL kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from dsv4core.kernels.triton._launch import alignment, pieces
from dsv4core_cuda.cutedsl._build import Program
from dsv4core_cuda.cutedsl._measured import Forms, chosen

FORM = "fp8_ds_mla"
WARPS, AT_ONCE = 4, 2


@cache
def program(rows: int, at_once: int = AT_ONCE, warps: int = WARPS) -> Program:
    """The kernel for pages of so many rows; a warp takes `at_once` heads."""
    arguments = "q" * 7 + "i" * 5 + "q" * 7 + "f"
    return Program("qnorm_rope_insert", arguments, (rows, at_once, warps), 32 * warps, early=True)


def programs(arch: str) -> dict[str, Program]:
    """A program of every form that an architecture has, for ahead-of-time compilation."""
    return {FORM: program(64)}


def bind(fallback: Callable[..., Tensor], forms: Forms, arch: str) -> Callable[..., Tensor]:
    """The op; layouts that are not in `forms`, and what 16 bytes do not divide, go to `fallback`."""

    def fused_qnorm_rope_kv_insert(
        q: Tensor, kv: Tensor, positions: Tensor, cos_sin: Tensor, k_cache: Tensor, slot_mapping: Tensor, *,
        rows: int, layout: str, eps: float, padded_heads: int,
    ) -> Tensor:  # fmt: skip
        """Normalise every query head, rotate queries and keys, and write the keys' window rows."""
        tokens, heads, _ = q.shape
        if (
            not chosen(forms, layout, tokens) or padded_heads < heads or alignment(k_cache) < 16
            or not _aligned(q, kv, cos_sin) or tokens * padded_heads >= 1 << 31
        ):  # fmt: skip
            return fallback(
                q, kv, positions, cos_sin, k_cache, slot_mapping,
                rows=rows, layout=layout, eps=eps, padded_heads=padded_heads,
            )  # fmt: skip
        out = q.new_empty(tokens, padded_heads, 512)
        count = slot_mapping.shape[0]
        key_blocks = pieces(count, WARPS)
        program(rows).on(q.device.index)(
            (key_blocks + pieces(tokens * padded_heads, WARPS * AT_ONCE), 1, 1),
            q.data_ptr(), kv.data_ptr(), positions.data_ptr(), cos_sin.data_ptr(), k_cache.data_ptr(),
            slot_mapping.data_ptr(), out.data_ptr(), tokens, count, key_blocks, heads, padded_heads,
            2 * q.stride(0), 2 * q.stride(1), 2 * kv.stride(0), 8 * positions.stride(0),
            4 * cos_sin.stride(0), k_cache.stride(0), 8 * slot_mapping.stride(0), eps,
        )  # fmt: skip
        return out

    return fused_qnorm_rope_kv_insert


def _aligned(q: Tensor, kv: Tensor, cos_sin: Tensor) -> bool:
    """Whether 16 bytes of queries, keys and angles can be moved at once."""
    places = q.data_ptr() | 2 * q.stride(0) | 2 * q.stride(1) | kv.data_ptr() | 2 * kv.stride(0)
    places |= cos_sin.data_ptr() | 4 * cos_sin.stride(0)
    return places % 16 == 0 and q.dtype == kv.dtype == torch.bfloat16
