"""The same attention for few tokens: tiles are scored side by side, then used channel block by channel block.

A decode step of one request has one program per 64 heads, which leaves a device idle. Here a first kernel
scores every tile of keys in a program of its own; a second one walks the tiles in order, for 64 channels a
program. Tiles, their order and every operation are those of `sparse_attention_kernel`, so a row has the same
bits whichever way its batch is cut: the choice may depend on the batch, the result does not.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from dsv4core.kernels.triton._attention import (
    LOG2E,
    NEVER,
    advance,
    finish,
    listed_rows,
    piece,
    query_pieces,
    row_pieces,
    store_piece,
    tile_weights,
)
from dsv4core.kernels.triton._launch import interpreted, launch, pieces
from dsv4core.kernels.triton.numerics import matrix

FEW = 24  # programs of the plain kernel, up to which a device is mostly idle
TILES = 2  # fewer tiles leave nothing to do side by side


def worthwhile(programs: int, widths: tuple[int, int]) -> bool:
    """Whether to cut the work this way; a choice of speed only."""
    return not interpreted and programs <= FEW and sum(pieces(w, 64) for w in widths) > TILES
