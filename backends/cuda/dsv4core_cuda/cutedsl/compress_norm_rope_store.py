"""Close windows by CuTeDSL kernels: copies of states run ahead of the pooling."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from dsv4core.kernels.triton._launch import alignment, pieces, value_checks
from dsv4core.layout import get_layout
from dsv4core_cuda.cutedsl._build import Program
from dsv4core_cuda.cutedsl._driver import processors
from dsv4core_cuda.cutedsl._measured import Forms, chosen

INDEX = (
    "index_fp8", "index_fp8_ue8m0x4", "index_fp8_hadamard_f32", "index_mxfp4", "index_mxfp4_hadamard"
)  # fmt: skip
FORMS = ("ratio 4 fp8_ds_mla", "ratio 128 fp8_ds_mla", *(f"ratio 4 {layout}" for layout in INDEX))
STAGE = 8192
"""Bytes that a warp copies ahead at a time."""
FAR = 1 << 31
"""States are addressed in units of 16 bytes, 31 bits."""
STAGES, WARPS, BLOCKS = 2, 4, 2
"""Stages of a warp, warps of a block and blocks of a multiprocessor for overlapping windows."""
TWO_FIT = 77312
"""Bytes of shared memory of which a multiprocessor has two blocks', not three."""
NOT_ON = {"sm_120a": "ratio 128 fp8_ds_mla"}
"""Forms that take more shared memory than a block has."""
ARGUMENTS = "q" * 9 + "iii" + "q" * 10 + "f"


@cache
def overlapping(
    dim: int, layout: str, state_rows: int, rows: int, bf16: bool, stages: int = STAGES, warps: int = WARPS
) -> Program:
    """The kernel of ratio 4: a warp makes an entry.

    Blocks of index entries ask for more shared memory than they use: with a third one on a multiprocessor,
    which blocks that start early would take, some had three and some one, and 32,768 tokens took 5 % longer.
    """
    shared = max(warps * (stages * STAGE + 32 * (8 * 4 + 16) + dim * 4), TWO_FIT)
    constants = (dim, layout, state_rows, rows, bf16, stages, warps)
    return Program("compress_overlapping", ARGUMENTS, constants, 32 * warps, shared, alone=True, early=True)


@cache
def windows(state_rows: int, rows: int, bf16: bool, stages: int = STAGES) -> Program:
    """The kernel of ratio 128: a block of 16 warps makes an entry, two a segment of its windows."""
    shared = 16 * (stages * STAGE // 2 + 32 * (16 * 4 + 16) + 4) + 8 * (2 * (256 + 512) + 8)
    constants = (state_rows, rows, bf16, stages)
    return Program("compress_windows", ARGUMENTS, constants, 512, shared, alone=True, early=True)


def programs(arch: str) -> dict[str, Program]:
    """A program of every form that an architecture has, for ahead-of-time compilation."""
    found = {f"ratio 4 {layout}": overlapping(128, layout, 4, 64, True) for layout in INDEX}
    found[FORMS[0]] = overlapping(512, "fp8_ds_mla", 4, 64, True)
    found[FORMS[1]] = windows(8, 2, True)
    return {form: program for form, program in found.items() if NOT_ON.get(arch) != form}


def bind(fallback: Callable[..., None], forms: Forms, arch: str) -> Callable[..., None]:
    """The op: `forms` by the kernels here, anything else, and checked mode, by `fallback`."""

    def compress_norm_rope_store(
        state_cache: Tensor, positions: Tensor, token_to_req: Tensor, slot_mapping: Tensor,
        block_table: Tensor, cos_sin: Tensor, norm_weight: Tensor, k_cache: Tensor,
        kv_slot_mapping: Tensor, *,
        ratio: int, head_dim: int, rows: int, layout: str, eps: float, rotate: str,
    ) -> None:  # fmt: skip
        """For every token that completes a window: pool, norm, rotate at its first position, store."""
        if (
            not chosen(forms, f"ratio {ratio} {layout}", slot_mapping.shape[0])
            or not _consistent(state_cache, ratio, head_dim, layout, rotate)
            or not _reachable(state_cache, cos_sin, norm_weight, k_cache)
            or value_checks(state_cache)
        ):
            return fallback(
                state_cache, positions, token_to_req, slot_mapping, block_table, cos_sin, norm_weight,
                k_cache, kv_slot_mapping,
                ratio=ratio, head_dim=head_dim, rows=rows, layout=layout, eps=eps, rotate=rotate,
            )  # fmt: skip
        device, tokens = state_cache.device.index, slot_mapping.shape[0]
        state_rows, bf16 = state_cache.shape[1], norm_weight.dtype == torch.bfloat16
        if ratio == 4:
            program, at_once = overlapping(head_dim, layout, state_rows, rows, bf16), WARPS
            run = max(1, pieces(tokens, processors(device) * BLOCKS * WARPS))
        else:
            program, at_once = windows(state_rows, rows, bf16), 1
            run = max(1, pieces(tokens, processors(device)))
        program.on(device)(
            (pieces(tokens, run * at_once), 1, 1),
            state_cache.data_ptr(), positions.data_ptr(), token_to_req.data_ptr(), slot_mapping.data_ptr(),
            block_table.data_ptr(), cos_sin.data_ptr(), norm_weight.data_ptr(), k_cache.data_ptr(),
            kv_slot_mapping.data_ptr(), tokens, run, block_table.shape[1] if block_table.shape[0] else 0,
            8 * positions.stride(0), 4 * token_to_req.stride(0), 8 * slot_mapping.stride(0),
            8 * kv_slot_mapping.stride(0), state_cache.stride(0) // 4, state_cache.stride(1) // 4,
            4 * block_table.stride(0), 4 * block_table.stride(1), 4 * cos_sin.stride(0), k_cache.stride(0),
            eps,
        )  # fmt: skip
        return None

    return compress_norm_rope_store


def _consistent(state: Tensor, ratio: int, dim: int, layout: str, rotate: str) -> bool:
    """Whether sizes agree; to say what is wrong with those that do not is the other kernel's."""
    found = get_layout(layout)
    width = 2 * dim * (2 if ratio == 4 else 1)
    return found.width == dim and found.rotate == rotate and state.shape[2] == width


def _reachable(state: Tensor, cos_sin: Tensor, weight: Tensor, cache: Tensor) -> bool:
    """Whether 16 bytes of states and weights, 8 of angles and of pages can be moved at once."""
    words = state.data_ptr() | weight.data_ptr() | 4 * state.stride(0) | 4 * state.stride(1)
    angles = cos_sin.data_ptr() | 4 * cos_sin.stride(0)
    far = state.shape[0] * state.stride(0) // 4 < FAR
    return words % 16 == 0 and far and angles % 8 == 0 and alignment(cache) >= 8
