"""Insert key rows by a CuTeDSL kernel: a warp asks for several rows before it waits for the first."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from dsv4core.kernels.triton._launch import alignment, pieces
from dsv4core_cuda.cutedsl._build import Program

FORMS = ("fp8_ds_mla",)
WARPS, AT_ONCE = 4, 4


@cache
def program(rows: int, at_once: int = AT_ONCE) -> Program:
    """The kernel for pages of so many rows."""
    return Program("insert_rows", "qqqiqqq", (rows, at_once, WARPS), 32 * WARPS)


def programs(arch: str) -> dict[str, Program]:
    """A program of every form that an architecture has, for ahead-of-time compilation."""
    return {FORMS[0]: program(64)}


def bind(fallback: Callable[..., None], forms: frozenset[str], arch: str) -> Callable[..., None]:
    """The op; layouts that are not in `forms`, and what 16 bytes do not divide, go to `fallback`."""

    def quantize_and_insert_k_cache(
        k: Tensor, k_cache: Tensor, slot_mapping: Tensor, *, rows: int, layout: str
    ) -> None:
        """Quantise one rotated key row per slot and write it into its page."""
        places = k.data_ptr() | 2 * k.stride(0)
        if layout not in forms or alignment(k_cache) < 16 or places % 16 or k.dtype != torch.bfloat16:
            return fallback(k, k_cache, slot_mapping, rows=rows, layout=layout)
        count = slot_mapping.shape[0]
        program(rows).on(k.device.index)(
            (pieces(count, AT_ONCE * WARPS), 1, 1),
            k.data_ptr(), k_cache.data_ptr(), slot_mapping.data_ptr(), count, 2 * k.stride(0),
            k_cache.stride(0), 8 * slot_mapping.stride(0),
        )  # fmt: skip
        return None

    return quantize_and_insert_k_cache
