"""Turn the attention output back to position 0."""

import triton
import triton.language as tl
from torch import Tensor

from dsv4core.kernels.triton._heads import angles, token_and_head
from dsv4core.kernels.triton._launch import launch, pieces
from dsv4core.kernels.triton._pages import store_as
from dsv4core.kernels.triton._tuning import tuned
from dsv4core.kernels.triton.numerics import rotate, widen


@triton.jit(do_not_specialize=["tokens", "positions"])
def inverse_rope_kernel(
    o, positions, cos_sin, out, tokens, heads, token_stride, head_stride, position_stride, table_stride,
    ROWS: tl.constexpr,
):  # fmt: skip
    """One program copies ROWS heads and turns their last 64 channels."""
    t, h = token_and_head(tl.program_id(0) * ROWS + tl.arange(0, ROWS), heads)
    live = (t < tokens)[:, None]
    d = tl.arange(0, 512)[None, :]
    j = tl.arange(0, 64)[None, :]
    cos, sin = angles(cos_sin, positions, t, t < tokens, position_stride, table_stride)
    start = o + (t * token_stride + h * head_stride)[:, None]
    target = out + ((t * heads + h) * 512)[:, None]
    tl.store(target + d, tl.load(start + d, live & (d < 448)), live & (d < 448))
    tail = widen(tl.load(start + 448 + j, live & (j < 64), other=0.0))
    store_as(target + 448 + j, rotate(tail, cos, sin, True, 64), live & (j < 64))


def inverse_rope(o: Tensor, positions: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotate the last 64 channels of every head backwards by the query's position; one rounding.

    Shapes: o bf16 [T, H, 512], positions i64 [T], cos_sin f32 [P, 64] -> bf16 [T, H, 512].
    """
    tokens, heads, _ = o.shape
    out = o.new_empty(o.shape)
    meta = tuned("inverse_rope", o)
    launch(
        inverse_rope_kernel, pieces(tokens * heads, meta["ROWS"]), o, o, positions, cos_sin, out, tokens,
        heads, o.stride(0), o.stride(1), positions.stride(0), cos_sin.stride(0), **meta,
    )  # fmt: skip
    return out
