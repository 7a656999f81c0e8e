"""Index scores of one token against a run of entries, for `indexer_logits` and `sparse_indexer`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.kernels.triton._early import start_early
from dsv4core.kernels.triton._launch import alignment, launch, pieces, power
from dsv4core.kernels.triton._pages import load_u32
from dsv4core.kernels.triton._table import table_rows
from dsv4core.kernels.triton._tuning import native_e4m3, tuned
from dsv4core.kernels.triton.numerics import byte_scale, decode_e2m1, float_of, matrix, matrix_e4m3
from dsv4core.layout import get_layout


@triton.jit
def _channel(column, MXFP4: tl.constexpr):
    """The channel at a column of the operands of the product, where their order has no meaning.

    Four threads read a row, 16 bytes a piece, and keep what they read: column bits 1 and 2 are the thread in
    the layout of NVIDIA's matrix instructions, the others count its channels.
    """
    thread = column // 2 % 4
    if MXFP4:  # 16 bytes are four words, and `_pairs` takes nibbles 0 and 4, 1 and 5, 2 and 6, 3 and 7
        return thread * 32 + column // 32 * 8 + column // 8 % 4 + column % 2 * 4
    else:
        return column // 64 * 64 + thread * 16 + column // 8 % 8 * 2 + column % 2


@triton.jit
def _queries(q, scales, row, live, MXFP4: tl.constexpr, HARDWARE: tl.constexpr):
    """Dequantised heads of a token. Shapes: row i64 [H] -> [H, 128] in the order of `_channel`."""
    c = _channel(tl.arange(0, 128), MXFP4)[None, :]
    mask = live[:, None] & (c >= 0)
    if MXFP4:
        code = tl.load(q + row[:, None] * 64 + c // 2, mask, other=0).to(tl.int32) >> (c % 2 * 4)
        byte = tl.load(scales + row[:, None] * 4 + c // 32, mask, other=127)
        return matrix(decode_e2m1(code & 15) * byte_scale(byte))
    else:
        return matrix_e4m3(tl.load(q + row[:, None] * 128 + c, mask, other=0), HARDWARE)


@triton.jit
def _order(BLOCK: tl.constexpr, WARPS: tl.constexpr):
    """Which entry of a tile is read as row n: a warp reads 8 neighbours, and multiplies two such groups."""
    n = tl.arange(0, BLOCK)
    return n // (16 * WARPS) * (16 * WARPS) + n // 8 % WARPS * 16 + n // (8 * WARPS) % 2 * 8 + n % 8


@triton.jit
def _in_order(x, WARPS: tl.constexpr):
    """Rows as they were read back into the order of entries. Shapes: [BLOCK] -> [BLOCK]."""
    B: tl.constexpr = x.shape[0]
    return tl.reshape(tl.permute(tl.reshape(x, (B // (16 * WARPS), 2, WARPS, 8)), (0, 2, 1, 3)), (B,))


@triton.jit
def _keys_fp8(start, live, WARPS: tl.constexpr, HARDWARE: tl.constexpr):
    """Keys at byte pointers. Shapes: [BLOCK] -> [BLOCK, 128], entries and channels in order of the product.

    Permuted are logical places, not data: the compiler finds that every thread has what it needs.
    """
    B: tl.constexpr = start.shape[0]
    j = tl.arange(0, 64)[None, :]
    mask = live[:, None] & (j < 64)
    low = tl.load(start[:, None] + j, mask, other=0)
    high = tl.load(start[:, None] + 64 + j, mask, other=0)
    codes = tl.permute(tl.join(low, high), (0, 2, 1))
    codes = tl.reshape(codes, (B // (16 * WARPS), 2, WARPS, 8, 2, 4, 8, 2))
    codes = tl.permute(codes, (0, 2, 1, 3, 4, 6, 5, 7))
    return matrix_e4m3(tl.reshape(codes, (B, 128)), HARDWARE)


@triton.jit
def _pairs(nibbles, by, HARDWARE: tl.constexpr):
    """Values of the e2m1 codes in bits 0-3 and 16-19, times `by`. Shapes: i32 [R, C] -> [R, C, 2].

    With hardware for bf16 both are shifted into place at once: as bf16 they are values times 2^-126, the
    half among them subnormal, and `by` makes up for it.
    """
    if HARDWARE:
        both = ((nibbles & 0x00070007) << 6) | ((nibbles & 0x00080008) << 12)
        both = tl.inline_asm_elementwise(
            "mul.rn.bf16x2 $0, $1, $2;", "=r,r,r", [both, by], tl.int32, is_pure=True, pack=1
        )
        low = (both & 0xFFFF).to(tl.int16).to(tl.bfloat16, bitcast=True)
        high = (both >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
        return tl.join(low, high)
    else:
        low, high = decode_e2m1(nibbles & 15), decode_e2m1((nibbles >> 16) & 15)
        return matrix(tl.join(low * by, high * by))


@triton.jit
def _keys_mxfp4(start, word, live, ALIGN: tl.constexpr, WARPS: tl.constexpr, HARDWARE: tl.constexpr):
    """Keys at byte pointers whose four scales are bytes of `word`, and what their scores are to be scaled by.

    Shapes: [BLOCK] -> [BLOCK, 128] as `_keys_fp8`, f32 [BLOCK]. With hardware a key is taken relative to its
    largest scale, so that bf16 holds it together with the 2^126 that `_pairs` needs.
    """
    B: tl.constexpr = start.shape[0]
    j = tl.arange(0, 16)[None, :]
    mask = live[:, None] & (j < 16)
    words = load_u32(start[:, None], j, mask, ALIGN)
    byte = (word[:, None] >> (8 * tl.arange(0, 4)[None, :])) & 255
    byte = tl.minimum(tl.maximum(byte, 1), 254)
    if HARDWARE:
        top = tl.max(byte, 1)
        by = (tl.maximum(byte - top[:, None] + 253, 0) << 7) * 0x10001  # bf16, twice
        scale = float_of(top << 23)
    else:
        by = float_of(byte << 23)
        scale = tl.full([B], 1.0, tl.float32)
    by = tl.reshape(tl.broadcast_to(by[:, :, None], (B, 4, 4)), (B, 16))
    a = tl.join(_pairs(words, by, HARDWARE), _pairs(words >> 4, by, HARDWARE))
    b = tl.join(_pairs(words >> 8, by, HARDWARE), _pairs(words >> 12, by, HARDWARE))
    keys = tl.reshape(tl.join(a, b), (B // (16 * WARPS), 2, WARPS, 8, 4, 4, 2, 2, 2))
    keys = tl.permute(keys, (0, 2, 1, 3, 5, 8, 7, 4, 6))
    return tl.reshape(keys, (B, 128)), scale


@triton.jit(
    do_not_specialize=["first", "count", "skip", "chunk", "width", "pages", "table_stride", "out_stride",
                       "lens", "requests", "table"]
)  # fmt: skip
def index_scores_kernel(
    q, q_scales, weights, cache, lens, requests, table, out,
    heads, first, count, skip, chunk, width, pages,
    len_stride, request_stride, table_stride, column_stride, page_stride, weight_stride, out_stride,
    rows: tl.constexpr, LAYOUT: tl.constexpr, ALIGN: tl.constexpr, HARDWARE: tl.constexpr, FILL: tl.constexpr,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, WARPS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Program (t, c) scores entries first + c * chunk .. of token t, BLOCK at a time.

    out[t, i] is entry first + i, for i < count. FILL writes -inf where nothing is visible; without it those
    cells are left, and tokens that see at most `skip` entries are not scored at all.
    """
    start_early(EARLY)
    MXFP4: tl.constexpr = LAYOUT == "index_mxfp4" or LAYOUT == "index_mxfp4_hadamard"
    RECORD: tl.constexpr = 64 if MXFP4 else 128
    t = tl.program_id(0).to(tl.int64)
    begin = tl.program_id(1) * chunk
    length = tl.load(lens + t * len_stride)
    visible = tl.where(length > skip, length - first, 0)
    request = tl.load(requests + t * request_stride).to(tl.int64)
    h = tl.arange(0, HEADS)
    live_heads = (h < heads) & (visible > begin)
    heads_of_t = tl.trans(_queries(q, q_scales, t * heads + h, live_heads, MXFP4, HARDWARE))
    w = tl.load(weights + t * weight_stride + h, live_heads, other=0.0)[None, :]
    stop = tl.minimum(begin + chunk, count)
    seen = tl.minimum(stop, visible)
    last = stop
    if not FILL:
        last = seen
    order = _order(BLOCK, WARPS)
    steps = tl.cdiv(tl.maximum(last - begin, 0), BLOCK)  # interpreted tokens of other lengths go along
    for start in range(begin, begin + steps * BLOCK, BLOCK):
        i = start + order
        page, row = table_rows(
            table, request, first + i, i < seen, width, table_stride, column_stride, rows
        )  # fmt: skip
        live = (page >= 0) & (page < pages)
        place = cache + tl.where(live, page, 0).to(tl.int64) * page_stride
        word = load_u32(place + rows * RECORD, row, live, ALIGN)
        if MXFP4:
            keys, scale = _keys_mxfp4(place + row * 64, word, live, ALIGN, WARPS, HARDWARE)
        else:
            keys = _keys_fp8(place + row * 128, live, WARPS, HARDWARE)
            if LAYOUT == "index_fp8_ue8m0x4":
                scale = byte_scale(word & 0xFF)
            else:
                scale = float_of(word)
        dots = tl.dot(keys, heads_of_t, input_precision="ieee")
        score = tl.sum(tl.maximum(dots, 0.0) * w, 1) * _in_order(scale, WARPS)
        i = start + tl.arange(0, BLOCK)
        tl.store(out + t * out_stride + i, tl.where(i < visible, score, -float("inf")), i < last)


def score(
    out: Tensor, q: Tensor, scales: Tensor | None, weights: Tensor, cache: Tensor, lens: Tensor,
    requests: Tensor, table: Tensor, *, rows: int, layout: str, first: int, count: int, skip: int, fill: bool,
) -> None:  # fmt: skip
    """Scores of entries first .. first + count - 1 into out[:, :count]. Shapes: out f32 [T, >= count]."""
    tokens, heads, _ = q.shape
    meta = tuned("index_scores", q, mxfp4=int(scales is not None))
    # Runs long enough that reading the queries does not count, and as many as keep the device busy.
    runs = pieces(meta.pop("programs"), max(tokens, 1))
    chunk = meta["BLOCK"] * max(meta.pop("tiles"), pieces(pieces(count, meta["BLOCK"]), runs))
    launch(
        index_scores_kernel, (tokens, pieces(count, chunk)), q, _bytes(q),
        _bytes(q) if scales is None else scales, weights, cache, lens, requests, table, out, heads, first,
        count, skip, chunk, table.shape[1] if table.shape[0] else 0, cache.shape[0], lens.stride(0),
        requests.stride(0), table.stride(0), table.stride(1), cache.stride(0), weights.stride(0),
        out.stride(0), rows=rows, LAYOUT=layout, ALIGN=alignment(cache), HARDWARE=native_e4m3(q), FILL=fill,
        HEADS=power(heads, 16), WARPS=meta["num_warps"], **meta,
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
