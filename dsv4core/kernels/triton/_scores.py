"""Index scores of one token against a run of entries, for `indexer_logits` and `sparse_indexer`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.kernels.triton._launch import alignment, block, launch, pieces, power
from dsv4core.kernels.triton._pages import load_u32
from dsv4core.kernels.triton._table import table_slots
from dsv4core.kernels.triton._tuning import native_e4m3
from dsv4core.kernels.triton.numerics import byte_scale, decode_e2m1, decode_e4m3, float_of, matrix
from dsv4core.layout import get_layout


@triton.jit
def _nibbles(packed, scales):
    """Even and odd channels of packed e2m1 rows; channel order has no meaning in a dot product.

    Shapes: u8 [R, 64], scales f32 [R, 4] -> f32 [R, 64] twice.
    """
    R: tl.constexpr = packed.shape[0]
    p = packed.to(tl.int32)
    wide = tl.reshape(tl.broadcast_to(scales[:, :, None], (R, 4, 16)), (R, 64))
    return decode_e2m1(p & 15) * wide, decode_e2m1((p >> 4) & 15) * wide


@triton.jit
def _queries(q, scales, row, live, MXFP4: tl.constexpr, HARDWARE: tl.constexpr):
    """Dequantised heads of a token in two halves of the channels. Shapes: row i64 [H] -> [H, 64] twice."""
    j = tl.arange(0, 64)[None, :]
    mask = live[:, None] & (j < 64)
    if MXFP4:
        g = tl.arange(0, 4)[None, :]
        byte = tl.load(scales + row[:, None] * 4 + g, live[:, None] & (g < 4), other=127)
        a, b = _nibbles(tl.load(q + row[:, None] * 64 + j, mask, other=0), byte_scale(byte))
    else:
        a = decode_e4m3(tl.load(q + row[:, None] * 128 + j, mask, other=0), HARDWARE)
        b = decode_e4m3(tl.load(q + row[:, None] * 128 + 64 + j, mask, other=0), HARDWARE)
    return matrix(a), matrix(b)


@triton.jit(
    do_not_specialize=[
        "first",
        "count",
        "skip",
        "width",
        "pages",
        "table_stride",
        "out_stride",
        "lens",
        "requests",
        "table",
    ]
)
def index_scores_kernel(
    q, q_scales, weights, cache, lens, requests, table, out,
    heads, first, count, skip, width, pages,
    len_stride, request_stride, table_stride, column_stride, page_stride, weight_stride, out_stride,
    rows: tl.constexpr, LAYOUT: tl.constexpr, ALIGN: tl.constexpr, HARDWARE: tl.constexpr, FILL: tl.constexpr,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Program (t, c) scores entries first + c * CHUNK .. of token t, BLOCK at a time.

    out[t, i] is entry first + i, for i < count. FILL writes -inf where nothing is visible; without it those
    cells are left, and tokens that see at most `skip` entries are not scored at all.
    """
    MXFP4: tl.constexpr = LAYOUT == "index_mxfp4" or LAYOUT == "index_mxfp4_hadamard"
    t = tl.program_id(0).to(tl.int64)
    begin = tl.program_id(1) * CHUNK
    length = tl.load(lens + t * len_stride)
    visible = tl.where(length > skip, length - first, 0)
    request = tl.load(requests + t * request_stride).to(tl.int64)
    h = tl.arange(0, HEADS)
    live_heads = (h < heads) & (visible > begin)
    a, b = _queries(q, q_scales, t * heads + h, live_heads, MXFP4, HARDWARE)
    a, b = tl.trans(a), tl.trans(b)
    w = tl.load(weights + t * weight_stride + h, live_heads, other=0.0)[None, :]
    j = tl.arange(0, 64)[None, :]
    stop = tl.minimum(begin + CHUNK, count)
    last = stop
    if not FILL:
        last = tl.minimum(stop, visible)
    for start in range(begin, last, BLOCK):
        i = start + tl.arange(0, BLOCK)
        index = (first + i).to(tl.int64)
        seen = (i < stop) & (i < visible)
        slot = table_slots(
            table, request + tl.zeros_like(index), index, seen, width, table_stride, column_stride, rows
        )
        live = (slot >= 0) & (slot < pages.to(tl.int64) * rows)
        slot = tl.where(live, slot, 0)
        page = cache + (slot // rows) * page_stride
        row = slot % rows
        mask = live[:, None] & (j < 64)
        if MXFP4:
            g = tl.arange(0, 4)[None, :]
            behind = (page + rows * 64 + row * 4)[:, None] + g
            byte = tl.load(behind, live[:, None] & (g < 4), other=127)
            ka, kb = _nibbles(tl.load((page + row * 64)[:, None] + j, mask, other=0), byte_scale(byte))
        else:
            ka = decode_e4m3(tl.load((page + row * 128)[:, None] + j, mask, other=0), HARDWARE)
            kb = decode_e4m3(tl.load((page + row * 128 + 64)[:, None] + j, mask, other=0), HARDWARE)
        dots = tl.dot(matrix(ka), a, input_precision="ieee")
        dots = tl.dot(matrix(kb), b, dots, input_precision="ieee")
        score = tl.sum(tl.maximum(dots, 0.0) * w, 1)
        if not MXFP4:
            word = load_u32(page + rows * 128 + row * 4, live, ALIGN)
            if LAYOUT == "index_fp8_ue8m0x4":
                score = score * byte_scale(word & 0xFF)
            else:
                score = score * float_of(word)
        tl.store(out + t * out_stride + i, tl.where(seen, score, -float("inf")), i < last)


def score(
    out: Tensor, q: Tensor, scales: Tensor | None, weights: Tensor, cache: Tensor, lens: Tensor,
    requests: Tensor, table: Tensor, *, rows: int, layout: str, first: int, count: int, skip: int, fill: bool,
) -> None:  # fmt: skip
    """Scores of entries first .. first + count - 1 into out[:, :count]. Shapes: out f32 [T, >= count]."""
    tokens, heads, _ = q.shape
    size, chunk = block(128, 512), block(1024, 512)
    launch(
        index_scores_kernel, (tokens, pieces(count, chunk)), q, _bytes(q),
        _bytes(q) if scales is None else scales, weights, cache, lens, requests, table, out, heads, first,
        count, skip, table.shape[1] if table.shape[0] else 0, cache.shape[0], lens.stride(0),
        requests.stride(0), table.stride(0), table.stride(1), cache.stride(0), weights.stride(0),
        out.stride(0), rows=rows, LAYOUT=layout, ALIGN=alignment(cache), HARDWARE=native_e4m3(q), FILL=fill,
        HEADS=power(heads, 16), BLOCK=size, CHUNK=chunk, num_warps=8, num_stages=3,
    )  # fmt: skip


def _bytes(x: Tensor) -> Tensor:
    """One-byte floats as bytes: kernels decode codes themselves."""
    return x.view(torch.uint8)


def check_queries(op: str, q: Tensor, scales: Tensor | None, layout: str, rotate: str) -> None:
    """The queries belong to the layout: same rotation, same kind of codes, the same number of channels."""
    known = get_layout(layout)
    mxfp4 = layout.startswith("index_mxfp4")
    wanted = torch.uint8 if mxfp4 else torch.float8_e4m3fn
    if rotate != known.rotate:
        expected = f"{known.rotate!r}, the flag of {layout}: q and k are rotated together"
        raise OpArgumentError(op, "rotate", expected, repr(rotate))
    if q.dtype != wanted:
        raise OpArgumentError(op, "q", f"{wanted}, the queries of {layout}", str(q.dtype))
    if mxfp4 != (scales is not None):
        form = "u8 [T, H, 4]" if mxfp4 else "None"
        raise OpArgumentError(op, "q_scales", f"{form} with {layout}", "the other")
    if q.shape[2] != (64 if mxfp4 else 128):
        raise OpArgumentError(op, "q", "128 channels", f"shape {list(q.shape)}")
    if scales is not None and tuple(scales.shape) != (*q.shape[:2], 4):
        raise OpArgumentError(op, "q_scales", f"shape {[*q.shape[:2], 4]}", f"{list(scales.shape)}")
