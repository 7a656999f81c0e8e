"""Turn the attention output back to position 0."""

import triton
import triton.language as tl
from torch import Tensor

from dsv4core.kernels.triton._launch import block, launch, pieces, power
from dsv4core.kernels.triton._pages import store_as
from dsv4core.kernels.triton.numerics import rotate, widen


@triton.jit(do_not_specialize=["parts"])
def inverse_rope_kernel(
    o, positions, cos_sin, out, parts, heads, token_stride, head_stride, position_stride, table_stride,
    HEADS: tl.constexpr,
):  # fmt: skip
    """One program copies HEADS heads of a token and turns their last 64 channels."""
    pid = tl.program_id(0)
    t = (pid // parts).to(tl.int64)
    h = (pid % parts) * HEADS + tl.arange(0, HEADS)[:, None]
    d = tl.arange(0, 512)[None, :]
    j = tl.arange(0, 64)[None, :]
    half = tl.arange(0, 32)[None, :]
    angle = cos_sin + tl.load(positions + t * position_stride) * table_stride
    start = o + t * token_stride + h.to(tl.int64) * head_stride
    target = out + (t * heads + h) * 512
    nope = (h < heads) & (d < 448)
    tl.store(target + d, tl.load(start + d, nope), nope)
    tail = widen(tl.load(start + 448 + j, (h < heads) & (j < 64), other=0.0))
    turned = rotate(tail, tl.load(angle + half), tl.load(angle + 32 + half), True, 64)
    store_as(target + 448 + j, turned, (h < heads) & (j < 64))


def inverse_rope(o: Tensor, positions: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotate the last 64 channels of every head backwards by the query's position; one rounding.

    Shapes: o bf16 [T, H, 512], positions i64 [T], cos_sin f32 [P, 64] -> bf16 [T, H, 512].
    """
    tokens, heads, _ = o.shape
    out = o.new_empty(o.shape)
    size = min(block(4, 128), power(heads))
    parts = pieces(heads, size)
    launch(
        inverse_rope_kernel, tokens * parts, o, o, positions, cos_sin, out, parts, heads, o.stride(0),
        o.stride(1), positions.stride(0), cos_sin.stride(0), HEADS=size, num_warps=4,
    )  # fmt: skip
    return out
