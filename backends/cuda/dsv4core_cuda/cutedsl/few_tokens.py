"""Products of few tokens with e4m3 weights in blocks of 128 x 128: one kernel, sums over a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from dsv4core_cuda.cutedsl._build import Program

WIDTHS = (8, 16, 32, 64)
"""Tokens of a program: the first that holds all."""
MOST_BLOCKS = 8


@dataclass(frozen=True)
class Cut:
    """Outputs of a block and inputs of it, all of which it asks for at once."""

    rows: int
    segment: int


@cache
def program(cut: Cut, columns: int, blocks: int, byte: bool, early: int = 0, step: int = 1) -> Program:
    """The kernel for so many tokens and blocks of a cluster."""
    shared = 1024 + columns * (2 * cut.segment + 4 * cut.rows) + 16
    constants = (cut.rows, cut.segment, columns, blocks, byte, early, step)
    return Program(
        "few_tokens", "qqqqqqiiii", constants, 2 * cut.rows, shared, blocks, alone=True, early=early > 0
    )


def few_tokens(
    x: Tensor, weight: Tensor, scales: Tensor, cut: Cut, early: int = 0, step: int = 1, width: int = 0
) -> Tensor:
    """x @ weight^T. Shapes: x bf16 [T, G, in], e4m3 [rows, in], scales [rows/128, in/128] -> [T, rows].

    Groups of rows have inputs of their own.
    """
    tokens, groups, inputs = x.shape
    rows = weight.shape[0]
    out = x.new_empty(tokens, rows)
    columns = width or next(width for width in WIDTHS if tokens <= width)
    blocks, tiles = inputs // cut.segment, rows // cut.rows
    program(cut, columns, blocks, scales.dtype != torch.float32, early, step).on(x.device.index)(
        (blocks, tiles, 1),
        x.data_ptr(), weight.data_ptr(), scales.data_ptr(), out.data_ptr(), 2 * x.stride(0), 2 * x.stride(1),
        tokens, inputs, rows, tiles // groups,
    )  # fmt: skip
    return out
