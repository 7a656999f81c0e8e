"""Attention of prefill queries over a gathered bf16 workspace: the decode kernel on pages of one row."""

import torch
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.kernels.triton.sparse_decode import attend, listed, require_bf16

NAME = "sparse_prefill"


def sparse_prefill(
    q: Tensor, kv: Tensor, indices: Tensor, lens: Tensor, attn_sink: Tensor, out: Tensor, *, scale: float
) -> Tensor:
    """Attend to the listed workspace rows; K and V are the same row.

    Shapes: q bf16 [T, H, 512], kv bf16 [S, 512], indices i32 [T, K] (negative or >= S: none), lens i32 [T],
    attn_sink f32 [H], out bf16 [T, H, 512] (written) -> lse f32 [T, H] as `sparse_decode`.
    """
    if q.dtype != kv.dtype:
        raise OpArgumentError(NAME, "kv", f"{q.dtype}, like q", str(kv.dtype))
    require_bf16(NAME, q=q, out=out)
    rows = listed(kv.view(torch.uint8), indices, lens, 1, "bf16_row")
    return attend(q, rows, None, attn_sink, out, scale)
