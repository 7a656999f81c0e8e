"""Rows that are heads of tokens: row r is head r % heads of token r // heads."""

import triton
import triton.language as tl


@triton.jit
def token_and_head(row, heads):
    """Shapes: i32 [R] -> i64 [R] twice."""
    t = row // heads
    return t.to(tl.int64), (row - t * heads).to(tl.int64)


@triton.jit
def angles(cos_sin, positions, t, live, position_stride, table_stride):
    """Cosines and sines of tokens. Shapes: t i64 [R], live bool [R] -> f32 [R, 32] twice."""
    half = tl.arange(0, 32)[None, :]
    mask = live[:, None] & (half < 32)
    position = tl.load(positions + t * position_stride, live, other=0)
    start = cos_sin + (position * table_stride)[:, None] + half
    return tl.load(start, mask, other=0.0), tl.load(start + 32, mask, other=0.0)
