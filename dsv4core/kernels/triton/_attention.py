"""Attention of one token over listed rows of pages: the parts that decode and prefill kernels are made of.

A row's 512 channels are taken in pieces that are powers of two and straddle neither a scale nor the rotated
part: 256, 128 and 64 quantised channels, then 64 rotated ones. A piece is dequantised in registers, straight
from the page, and serves as key and as value.

Scores live in base 2 (scale * log2 e is folded in). The order of every sum is written here or is none, so
that a row has the same bits however its tiles are spread over programs (`_attention_split`): channels and
keys go through matrix products in their order, tiles are folded in theirs, weights are summed as integers.
"""

import triton
import triton.language as tl

from dsv4core.kernels.triton._flags import INTERPRETED
from dsv4core.kernels.triton._pages import load_bf16, load_u32, store_as
from dsv4core.kernels.triton.numerics import (
    SUM,
    bits_of,
    byte_scale,
    decode_e4m3,
    decode_e4m3_fnuz,
    matrix,
    round_bf16,
    widen,
)

NEVER = tl.constexpr(-1.0e30)  # below every score, and finite: a tile without a key makes no NaN
LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def listed_rows(
    slots, t, n, length, cache, stride, limit, token_stride, column_stride, rows: tl.constexpr,
    LAYOUT: tl.constexpr,
):  # fmt: skip
    """Byte pointers to rows and to their scales, and which are there: slots from 0 to limit - 1.

    Shapes: n i32 [N] -> pointers [N] twice, bool [N].
    """
    slot = tl.load(slots + t * token_stride + n.to(tl.int64) * column_stride, n < length, other=-1)
    live = slot.to(tl.uint32, bitcast=True) < limit.to(tl.uint32)
    slot = tl.where(live, slot, 0)
    page = slot // rows
    row = slot - page * rows
    start = cache + page.to(tl.int64) * stride
    if LAYOUT == "bf16_row":
        return start + row * 1024, start, live
    elif LAYOUT == "fp8_row":
        return start + row * 512, start, live
    else:
        return start + row * 576, start + rows * 576 + row * 8, live


@triton.jit
def _as_bf16(start, i, mask, ALIGN: tl.constexpr):
    if INTERPRETED or ALIGN < 2:
        return matrix(load_bf16(start, i, mask, ALIGN))
    else:
        return tl.load(start.to(tl.pointer_type(tl.bfloat16)) + i, mask, other=0.0)


@triton.jit
def stored(
    start, live, first, WIDTH: tl.constexpr, ROTATED: tl.constexpr, LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
):  # fmt: skip
    """Channels first .. first + WIDTH - 1 of rows as they are kept: codes or operands; zeros without a row.

    ROTATED: they are of the last 64 channels, which some layouts keep in bf16. Shapes: -> [N, WIDTH].
    """
    d = tl.arange(0, WIDTH)[None, :]
    mask = live[:, None] & (d < WIDTH)
    if LAYOUT == "bf16_row":
        return _as_bf16((start + 2 * first)[:, None], d, mask, ALIGN)
    elif ROTATED and LAYOUT != "fp8_row":
        return _as_bf16((start + 448)[:, None], first - 448 + d, mask, ALIGN)
    else:
        return tl.load(start[:, None] + first + d, mask, other=0)


@triton.jit
def scale_words(scales, live, first, LAYOUT: tl.constexpr, ALIGN: tl.constexpr):
    """Four scales of each row that has any, that of channel `first` among them. Shapes: -> i32 [N]."""
    if LAYOUT == "bf16_row" or LAYOUT == "fp8_row":
        return live
    else:
        return load_u32(scales, first // 256, live, ALIGN)


@triton.jit
def decoded(
    x, words, first, ROTATED: tl.constexpr, LAYOUT: tl.constexpr, HARDWARE: tl.constexpr
):  # fmt: skip
    """What `stored` gave as an operand of `tl.dot`. Shapes: [N, WIDTH], i32 [N] -> [N, WIDTH]."""
    if LAYOUT == "bf16_row" or (ROTATED and LAYOUT != "fp8_row"):
        return x
    elif LAYOUT == "fp8_row":
        return matrix(decode_e4m3(x, HARDWARE))
    else:
        # Four scales a word, and no dimension of groups: either would make more layouts that compute rows.
        group = first // 64 % 4 + tl.arange(0, x.shape[1])[None, :] // 64
        byte = (words[:, None] >> (group * 8)) & 0xFF
        if LAYOUT == "fp8_ds_mla_fnuz":
            values = decode_e4m3_fnuz(x)
        else:
            values = decode_e4m3(x, HARDWARE)
        return matrix(values * byte_scale(byte))


@triton.jit
def piece(
    start, scales, live, first, WIDTH: tl.constexpr, ROTATED: tl.constexpr, LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr, HARDWARE: tl.constexpr,
):  # fmt: skip
    """Channels of rows as an operand of `tl.dot`: `stored`, then `decoded`."""
    words = scale_words(scales, live, first, LAYOUT, ALIGN)
    x = stored(start, live, first, WIDTH, ROTATED, LAYOUT, ALIGN)
    return decoded(x, words, first, ROTATED, LAYOUT, HARDWARE)


@triton.jit
def row_pieces(start, scales, live, LAYOUT: tl.constexpr, ALIGN: tl.constexpr, HARDWARE: tl.constexpr):
    """A row's four pieces. Shapes: -> [N, 256], [N, 128], [N, 64], [N, 64]."""
    a = piece(start, scales, live, 0, 256, False, LAYOUT, ALIGN, HARDWARE)
    b = piece(start, scales, live, 256, 128, False, LAYOUT, ALIGN, HARDWARE)
    c = piece(start, scales, live, 384, 64, False, LAYOUT, ALIGN, HARDWARE)
    r = piece(start, scales, live, 448, 64, True, LAYOUT, ALIGN, HARDWARE)
    return a, b, c, r


@triton.jit
def query_pieces(q, live):
    """The four pieces of heads. Shapes: pointers [H], bool [H] -> [H, 256], [H, 128], [H, 64], [H, 64]."""
    d = tl.arange(0, 256)[None, :]
    e = tl.arange(0, 128)[None, :]
    f = tl.arange(0, 64)[None, :]
    a = operand(q[:, None] + d, live[:, None] & (d < 256))
    b = operand(q[:, None] + 256 + e, live[:, None] & (e < 128))
    c = operand(q[:, None] + 384 + f, live[:, None] & (f < 64))
    r = operand(q[:, None] + 448 + f, live[:, None] & (f < 64))
    return a, b, c, r


@triton.jit
def operand(pointer, mask):
    """bf16 values as an operand of `tl.dot`, zeros where masked. Shapes: pointers and bool of one shape."""
    x = tl.load(pointer, mask, other=0.0)
    if INTERPRETED:
        return matrix(widen(x))
    else:
        return x


@triton.jit
def tile_scores(qa, qb, qc, qr, ka, kb, kc, kr, live, factor):
    """Scores of a tile; -inf where no key is.

    Shapes: q pieces [H, ..], k pieces [N, ..], live bool [N] -> f32 [H, N].
    """
    # Apart, not one into the next: see APART in `sparse_decode`.
    s = tl.dot(qa, tl.trans(ka), input_precision="ieee") * factor
    s += tl.dot(qb, tl.trans(kb), input_precision="ieee") * factor
    s += tl.dot(qc, tl.trans(kc), input_precision="ieee") * factor
    s += tl.dot(qr, tl.trans(kr), input_precision="ieee") * factor
    return tl.where(live[None, :], s.to(tl.float32), -float("inf"))


@triton.jit
def _sum(p):
    """Sum of weights from 0 to 1 in the last dimension, in multiples of 2^-23. Shapes: [H, N] -> [H]."""
    if INTERPRETED:
        return tl.sum(p.to(SUM), 1)
    else:
        # p + 1 holds the nearest multiple in its low bits: a sum of integers has no order.
        return tl.sum(bits_of(p.to(tl.float32) + 1.0) - 0x3F800000, 1).to(tl.float32) * 1.1920928955078125e-07


@triton.jit
def weigh(s):
    """Weights of a tile of keys, relative to the tile's own maximum, which is rounded up to a whole number.

    Shapes: scores f32 [H, N] -> rounded weights f32 [H, N], the maximum f32 [H], the sums of weights and of
    rounded weights, in `SUM` [H].
    """
    own = tl.ceil(tl.maximum(tl.max(s, 1), NEVER))
    p = tl.exp2(s.to(SUM) - own[:, None])
    w = round_bf16(p.to(tl.float32))
    return w, own, _sum(p), _sum(w)


@triton.jit
def fold(w, own, added, added_rounded, peak, total, rounded):
    """Take a tile's weights into the running maximum and the sums of weights and of rounded weights.

    Shapes: what `weigh` gave, f32 [H] three times -> an operand of `tl.dot` [H, N], all three, and the factor
    of what was before f32 [H]. Maxima are whole numbers: factors are powers of two, and multiply exactly.
    """
    new = tl.maximum(peak, own)
    factor = tl.exp2(own - new)
    past = tl.exp2(peak - new)
    total = total * past + added * factor
    return matrix(w * factor[:, None]), new, total, rounded * past + added_rounded * factor, past


@triton.jit
def finish(peak, total, rounded, sink):
    """Share of every rounded weight in the output, and the natural log of the sum without the sink.

    That is +inf without a key. Shapes: f32 [H] four times -> f32 [H] twice.
    """
    whole = total + tl.exp2(sink * LOG2E - peak)
    # A weight that outweighs all others may be 0.4 % off, which total / rounded takes out again.
    share = tl.where(total > 0, total / tl.where(total > 0, rounded * whole, 1.0), 0.0)
    lse = tl.where(total > 0, (peak + tl.log2(tl.where(total > 0, total, 1.0))) * LN2, float("inf"))
    return share, lse


@triton.jit
def store_piece(out, acc, share, live, first, WIDTH: tl.constexpr):
    """Write channels first .. first + WIDTH - 1 of the output.

    Shapes: out pointers [H], acc f32 [H, WIDTH], share f32 [H].
    """
    d = tl.arange(0, WIDTH)[None, :]
    # A share of 0 with an infinite sum would be NaN: the row is 0 there.
    value = tl.where(share[:, None] == 0, 0.0, (acc * share[:, None]).to(tl.float32))
    store_as(out[:, None] + first + d, value, live[:, None] & (d < WIDTH))
