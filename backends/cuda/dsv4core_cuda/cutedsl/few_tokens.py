"""Products of few tokens with e4m3 weights in blocks of 128 x 128: one kernel, sums over a cluster."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from dsv4core_cuda.cutedsl._build import Program

ROWS, SEGMENT = 128, 512
"""Outputs and inputs of a block."""
BLOCKS = (2, 4, 8)
"""Segments of the inputs that there are kernels for: blocks of a cluster."""
WIDTHS = (8, 16, 32, 64)
"""Tokens of a kernel: the first that holds all is taken."""
MOST = WIDTHS[-1]
FASTER = ((1536, 4096), (8192, 1024), (4096, 1024))
"""Outputs and inputs of weights for which it measured no slower than Triton at 1, 8, 16, 32 and 64 tokens, on
an H100."""


def reason_against(rows: int, inputs: int, everywhere: bool = False) -> str:
    """Why a weight is not for the kernel, or "" where it is. `everywhere`: measured or not."""
    if rows % ROWS or inputs not in (blocks * SEGMENT for blocks in BLOCKS):
        sizes = ", ".join(str(blocks * SEGMENT) for blocks in BLOCKS)
        return f"it takes multiples of {ROWS} outputs and {sizes} inputs, not {rows} and {inputs}"
    if not everywhere and (rows, inputs) not in FASTER:
        known = ", ".join(f"[{n}, {k}]" for n, k in FASTER)
        return f"it measured faster for {known} only; DSV4CORE_CUDA_KERNELS=cutedsl takes [{rows}, {inputs}]"
    return ""


@cache
def program(width: int, blocks: int, byte: bool) -> Program:
    """The kernel for so many tokens and blocks of a cluster; `byte`: scales are UE8M0, not f32."""
    shared = 1024 + SEGMENT * ROWS + width * (2 * SEGMENT + 4 * ROWS) + 32
    return Program("few_tokens", "qqqqqiii", (width, blocks, byte), 2 * ROWS, shared, blocks, alone=True)


def programs(arch: str) -> dict[str, Program]:
    """A program of every form, for ahead-of-time compilation; its matrix products are SM90's."""
    forms = [(n, blocks, byte) for n in WIDTHS for blocks in BLOCKS for byte in (True, False)]
    found = {
        f"{n} tokens {b * SEGMENT} inputs {'ue8m0' if byte else 'f32'}": (n, b, byte) for n, b, byte in forms
    }
    return {form: program(*cut) for form, cut in found.items()} if arch == "sm_90a" else {}


def load(inputs: int, scales: torch.dtype, device: int) -> None:
    """Bring what products with a weight may start to a device, compiled where it is not yet."""
    for width in WIDTHS:
        program(width, inputs // SEGMENT, scales != torch.float32).on(device)


def few_tokens(x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    """x @ weight^T for 1 to 64 tokens. No code may be NaN.

    Shapes: x bf16 [T, in], weight e4m3 [rows, in], scales UE8M0 or f32 [rows/128, in/128], both contiguous
    -> bf16 [T, rows].
    """
    tokens, inputs = x.shape
    rows = weight.shape[0]
    if x.stride(1) != 1 or (x.data_ptr() | 2 * x.stride(0)) % 4:  # two inputs are copied at once
        x = x.clone(memory_format=torch.contiguous_format)
    out = x.new_empty(tokens, rows)
    width = next(width for width in WIDTHS if tokens <= width)
    program(width, inputs // SEGMENT, scales.dtype != torch.float32).on(x.device.index)(
        (inputs // SEGMENT, rows // ROWS, 1),
        x.data_ptr(), weight.data_ptr(), scales.data_ptr(), out.data_ptr(), 2 * x.stride(0), tokens, inputs,
        rows,
    )  # fmt: skip
    return out
