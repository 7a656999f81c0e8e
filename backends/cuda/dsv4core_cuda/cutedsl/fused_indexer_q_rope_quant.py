"""The indexer's queries in mxfp4 by a CuTeDSL kernel: two channels an instruction where bf16 is exact."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from dsv4core.kernels.triton._launch import pieces
from dsv4core_cuda.cutedsl._build import Program
from dsv4core_cuda.cutedsl._driver import processors
from dsv4core_cuda.cutedsl._measured import Forms, chosen

FORMS = ("mxfp4 none", "mxfp4 hadamard")
WARPS = 4
ENOUGH = 32
"""Warps of a multiprocessor below which the heads of a token are shared out."""

Result = tuple[Tensor, Tensor | None, Tensor]


@cache
def program(hadamard: bool, bf16: bool) -> Program:
    """The kernel, with or without rotation, for weights in bf16 or f32."""
    arguments = "q" * 7 + "iii" + "q" * 5 + "ff"
    return Program("index_q_mxfp4", arguments, (hadamard, bf16, WARPS), 32 * WARPS, early=True)


def programs(arch: str) -> dict[str, Program]:
    """A program of every form that an architecture has, for ahead-of-time compilation."""
    return {form: program(form.endswith("hadamard"), True) for form in FORMS}


def bind(fallback: Callable[..., Result], forms: Forms, arch: str) -> Callable[..., Result]:
    """The op: `forms` ("mxfp4 hadamard") by the kernel here, anything else by `fallback`."""

    def fused_indexer_q_rope_quant(
        positions: Tensor, q: Tensor, cos_sin: Tensor, weights: Tensor, *,
        softmax_scale: float, head_scale: float, format: str, rotate: str,
    ) -> Result:  # fmt: skip
        """RoPE on the last 64 channels, optional Hadamard, one bf16 rounding, then e2m1."""
        if not (chosen(forms, f"{format} {rotate}", q.shape[0]) and _aligned(q, cos_sin)):
            return fallback(
                positions, q, cos_sin, weights,
                softmax_scale=softmax_scale, head_scale=head_scale, format=format, rotate=rotate,
            )  # fmt: skip
        device = q.device.index
        tokens, heads, _ = q.shape
        values = q.new_empty(tokens, heads, 64, dtype=torch.uint8)
        scales = q.new_empty(tokens, heads, 4, dtype=torch.uint8)
        folded = weights.new_empty(tokens, heads, dtype=torch.float32)
        octets = pieces(heads, 8)
        parts = max(1, min(octets, processors(device) * ENOUGH // max(tokens, 1)))
        program(rotate == "hadamard", weights.dtype == torch.bfloat16).on(device)(
            (pieces(tokens * parts, WARPS), 1, 1),
            positions.data_ptr(), q.data_ptr(), cos_sin.data_ptr(), weights.data_ptr(), values.data_ptr(),
            scales.data_ptr(), folded.data_ptr(), tokens, heads, parts, 8 * positions.stride(0),
            2 * q.stride(0), 2 * q.stride(1), 4 * cos_sin.stride(0),
            weights.element_size() * weights.stride(0), softmax_scale, head_scale,
        )  # fmt: skip
        return values, scales, folded

    return fused_indexer_q_rope_quant


def _aligned(q: Tensor, cos_sin: Tensor) -> bool:
    """Whether 16 bytes of queries and of angles can be read at once."""
    places = q.data_ptr() | 2 * q.stride(0) | 2 * q.stride(1) | cos_sin.data_ptr() | 4 * cos_sin.stride(0)
    return q.dtype == torch.bfloat16 and places % 16 == 0
