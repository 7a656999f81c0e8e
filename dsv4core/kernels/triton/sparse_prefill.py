"""Attention of prefill queries over a gathered bf16 workspace: one program for some heads of a query."""

import triton
import triton.language as tl
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.kernels.triton._attention import LOG2E, NEVER, finish, fold, operand, store_piece, weigh
from dsv4core.kernels.triton._launch import launch, pieces
from dsv4core.kernels.triton._tuning import tuned
from dsv4core.kernels.triton.numerics import add_product
from dsv4core.kernels.triton.sparse_decode import HOPPER, require_bf16, whole_words

NAME = "sparse_prefill"


@triton.jit
def _scores(qa, qb, ka, kb, factor):
    """Scores of a tile from both halves of its rows."""
    s = tl.dot(qa, tl.trans(ka), input_precision="ieee") * factor
    s += tl.dot(qb, tl.trans(kb), input_precision="ieee") * factor
    return s.to(tl.float32)


@triton.jit(do_not_specialize=["parts", "rows", "width", "indices", "lens"])
def sparse_prefill_kernel(
    q, kv, indices, lens, sink, out, lse, scale,
    parts, heads, rows, width, q_stride, q_head_stride, kv_stride, index_stride, column_stride, len_stride,
    out_stride, out_head_stride,
    HEADS: tl.constexpr, KEYS: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    """One program attends with HEADS heads of a query; a row is two operands, as keys and as values."""
    pid = tl.program_id(0)
    t = (pid // parts).to(tl.int64)
    h = (pid % parts) * HEADS + tl.arange(0, HEADS)
    live = h < heads
    wide = h.to(tl.int64)
    d = tl.arange(0, 256)[None, :]
    query = (q + t * q_stride + wide * q_head_stride)[:, None] + d
    qa = operand(query, live[:, None] & (d < 256))
    qb = operand(query + 256, live[:, None] & (d < 256))
    a = tl.zeros([HEADS, 256], tl.float32)
    b = tl.zeros([HEADS, 256], tl.float32)
    peak = tl.zeros([HEADS], tl.float32) + NEVER
    total = tl.zeros([HEADS], tl.float32)
    rounded = tl.zeros([HEADS], tl.float32)
    factor = scale * LOG2E
    length = tl.minimum(tl.load(lens + t * len_stride), width)
    indices += t * index_stride
    n = tl.arange(0, KEYS)
    ahead = tl.load(indices + n.to(tl.int64) * column_stride, n < length, other=-1)
    for start in range(0, tl.cdiv(length, KEYS) * KEYS, KEYS):  # interpreted queries with fewer go along
        row = ahead
        n += KEYS  # the list is read a tile ahead of the rows
        ahead = tl.load(indices + n.to(tl.int64) * column_stride, n < length, other=-1)
        there = (row >= 0) & (row < rows)
        place = (kv + tl.where(there, row, 0).to(tl.int64) * kv_stride)[:, None] + d
        ka = operand(place, there[:, None] & (d < 256))
        kb = operand(place + 256, there[:, None] & (d < 256))
        if APART:  # see `sparse_decode`
            s = tl.zeros([HEADS, KEYS], tl.float32)
            once = start < length
            while once:
                s = _scores(qa, qb, ka, kb, factor)
                once = start < 0
        else:
            s = _scores(qa, qb, ka, kb, factor)
        s = tl.where(there[None, :], s, -float("inf"))
        w, own_peak, added, added_rounded = weigh(s)
        w, peak, total, rounded, past = fold(w, own_peak, added, added_rounded, peak, total, rounded)
        a = add_product(a * past[:, None], w, ka)
        b = add_product(b * past[:, None], w, kb)
    share, sums = finish(peak, total, rounded, tl.load(sink + h, live, other=0.0))
    target = out + t * out_stride + wide * out_head_stride
    store_piece(target, a, share, live, 0, 256)
    store_piece(target, b, share, live, 256, 256)
    tl.store(lse + t * heads + h, sums, live)


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
    tokens, heads, _ = q.shape
    lse = attn_sink.new_empty(tokens, heads)
    cut = tuned("sparse_prefill", q, heads=heads)
    resident = cut.pop("hopper", 0)
    gluon = resident and whole_words(q) and whole_words(kv)
    parts = pieces(heads, HOPPER if gluon else cut["HEADS"])
    work = tokens * parts
    kernel, programs, count = sparse_prefill_kernel, work, (parts,)
    if gluon:
        from dsv4core.kernels.triton._hopper_prefill import prefill_hopper_kernel

        kernel, programs, count, cut = (
            prefill_hopper_kernel,
            min(work, resident),
            (work, parts),
            {"num_warps": 4},
        )
    launch(
        kernel, programs, q, q, kv, indices, lens, attn_sink, out, lse, scale,
        *count, heads, kv.shape[0], indices.shape[1], q.stride(0), q.stride(1), kv.stride(0),
        indices.stride(0), indices.stride(1), lens.stride(0), out.stride(0), out.stride(1), **cut,
    )  # fmt: skip
    return lse
