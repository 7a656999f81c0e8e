"""Close windows by CuTeDSL kernels: copies run ahead of the pooling, so that memory never waits for arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from dsv4core.kernels.triton._launch import alignment, pieces, value_checks
from dsv4core.layout import get_layout
from dsv4core_cuda.cutedsl._build import Program
from dsv4core_cuda.cutedsl._driver import processors

STAGE = 8192
"""Bytes that a warp copies ahead at a time."""
FAR = 1 << 31
"""States are addressed in units of 16 bytes, 31 bits."""
LAYOUTS = {
    4: ("fp8_ds_mla", "index_fp8", "index_fp8_ue8m0x4", "index_fp8_hadamard_f32", "index_mxfp4",
        "index_mxfp4_hadamard"),
    128: ("fp8_ds_mla",),
}  # fmt: skip
"""Layouts that are written, by ratio."""
ARGUMENTS = "q" * 9 + "iii" + "q" * 10 + "f"


@cache
def overlapping(
    dim: int, layout: str, state_rows: int, rows: int, bf16: bool, stages: int, warps: int
) -> Program:  # fmt: skip
    """The kernel of ratio 4; each of `warps` warps of a block has `stages` of states in flight."""
    shared = warps * (stages * STAGE + 32 * (8 * 4 + 16) + dim * 4)
    constants = (dim, layout, state_rows, rows, bf16, stages, warps)
    return Program("compress_overlapping", ARGUMENTS, constants, 32 * warps, shared)


@cache
def windows(state_rows: int, rows: int, bf16: bool, stages: int) -> Program:
    """The kernel of ratio 128; a block of 8 warps makes an entry."""
    shared = 8 * (stages * STAGE + 32 * (16 * 4 + 16) + 256 + 512 + 4 + 8)
    return Program("compress_windows", ARGUMENTS, (state_rows, rows, bf16, stages), 256, shared)


def bind(fallback: Callable[..., None], stages: int = 3, warps: int = 4, blocks_: int = 2) -> Callable[..., None]:
    """The op; what the kernels do not take goes to `fallback`. `blocks`: on a multiprocessor at a time."""

    def compress_norm_rope_store(
        state_cache: Tensor, positions: Tensor, token_to_req: Tensor, slot_mapping: Tensor,
        block_table: Tensor, cos_sin: Tensor, norm_weight: Tensor, k_cache: Tensor, kv_slot_mapping: Tensor, *,
        ratio: int, head_dim: int, rows: int, layout: str, eps: float, rotate: str,
    ) -> None:  # fmt: skip
        """For every token that completes a window: pool, norm, rotate at the window's first position, store."""
        if not (
            _known(ratio, head_dim, layout, rotate)
            and _reachable(state_cache, cos_sin, norm_weight, k_cache) and not value_checks(state_cache)
        ):  # fmt: skip
            return fallback(
                state_cache, positions, token_to_req, slot_mapping, block_table, cos_sin, norm_weight, k_cache,
                kv_slot_mapping, ratio=ratio, head_dim=head_dim, rows=rows, layout=layout, eps=eps,
                rotate=rotate,
            )  # fmt: skip
        device, tokens = state_cache.device.index, slot_mapping.shape[0]
        state_rows, bf16 = state_cache.shape[1], norm_weight.dtype == torch.bfloat16
        if ratio == 4:
            program, many, blocks = overlapping(head_dim, layout, state_rows, rows, bf16, stages, warps), warps, blocks_
        else:
            program, many, blocks = windows(state_rows, rows, bf16, stages), 1, 1
        run = max(1, pieces(tokens, processors(device) * blocks * many))
        program.on(device)(
            (pieces(tokens, run * many), 1, 1),
            state_cache.data_ptr(), positions.data_ptr(), token_to_req.data_ptr(), slot_mapping.data_ptr(),
            block_table.data_ptr(), cos_sin.data_ptr(), norm_weight.data_ptr(), k_cache.data_ptr(),
            kv_slot_mapping.data_ptr(), tokens, run, block_table.shape[1] if block_table.shape[0] else 0,
            8 * positions.stride(0), 4 * token_to_req.stride(0), 8 * slot_mapping.stride(0),
            8 * kv_slot_mapping.stride(0), state_cache.stride(0) // 4, state_cache.stride(1) // 4,
            4 * block_table.stride(0), 4 * block_table.stride(1), 4 * cos_sin.stride(0), k_cache.stride(0), eps,
        )  # fmt: skip
        return None

    return compress_norm_rope_store


def _known(ratio: int, dim: int, layout: str, rotate: str) -> bool:
    """Whether there is a kernel; arguments that contradict each other are the other implementation's to refuse."""
    if layout not in LAYOUTS.get(ratio, ()):
        return False
    found = get_layout(layout)
    return found.width == dim and found.rotate == rotate


def _reachable(state: Tensor, cos_sin: Tensor, weight: Tensor, cache: Tensor) -> bool:
    """Whether 16 bytes of states and weights, 8 of angles and of pages can be moved at once."""
    strides = state.stride(0) | state.stride(1)
    far = state.shape[0] * state.stride(0) // 4 < FAR
    angles = cos_sin.data_ptr() | 4 * cos_sin.stride(0)
    words = state.data_ptr() | weight.data_ptr() | 4 * strides
    return words % 16 == 0 and far and angles % 8 == 0 and alignment(cache) >= 8
