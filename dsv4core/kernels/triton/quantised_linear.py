"""Products with stored weights: codes are dequantised in registers, so that memory is read once and narrow.

A tile holds ROWS outputs of TOKENS tokens; the weight is the left operand, whose rows are many even where
tokens are few. Products of bf16 with a code are exact; block scales multiply the sum of their 128 inputs,
group scales the values themselves, which bf16 holds.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv4core.kernels.triton._launch import launch, pieces
from dsv4core.kernels.triton._tuning import native_e4m3
from dsv4core.kernels.triton.numerics import (
    add_product,
    byte_scale,
    decode_e2m1,
    decode_e4m3,
    matrix,
    to_bf16,
    widen,
)

FP8, NVFP4, MXFP4 = 0, 1, 2
FORMATS = {"fp8_block": FP8, "nvfp4": NVFP4, "mxfp4": MXFP4}
ROWS = 64  # outputs of a tile
WIDTHS = (16, 32, 64)  # tokens of a tile: the first that holds all, else the last
PROGRAMS = 256  # about two for every multiprocessor; beyond, a sum is not split
LEAST_INPUTS = 1024  # of a part of a sum
SCALED = 128  # inputs that share a block scale, and a scale of quantised activations


@dataclass(frozen=True)
class Tile:
    """Outputs and tokens of a program, inputs of a step, parts of the sum, warps and stages."""

    rows: int
    tokens: int
    inputs: int
    split: int
    warps: int
    stages: int


@triton.jit
def _codes(code, HARDWARE: tl.constexpr):
    """A tile of e4m3 weights as an exact operand; on hardware NaN reads as 480. Shapes: u8 [R, K].

    The device's own conversion to bf16 goes through f16 and takes several slow instructions a value. Here the
    fields of four codes move into those of bf16, and one product with 2^120 sets the exponent, also of
    subnormals.
    """
    if HARDWARE:
        return tl.inline_asm_elementwise(
            """{
            .reg .b32 a, b, c, d;
            prmt.b32 a, 0, $2, 0x5040;
            prmt.b32 b, 0, $2, 0x7060;
            shr.b32 c, a, 4;
            shr.b32 d, b, 4;
            and.b32 c, c, 0x07f007f0;
            and.b32 d, d, 0x07f007f0;
            lop3.b32 a, a, 0x80008000, c, 0xEA;
            lop3.b32 b, b, 0x80008000, d, 0xEA;
            mov.b32 c, 0x7b807b80;
            mul.bf16x2 $0, a, c;
            mul.bf16x2 $1, b, c;
            }""",
            "=r,=r,r", [code], dtype=tl.bfloat16, is_pure=True, pack=4,
        )  # fmt: skip
    else:
        return matrix(decode_e4m3(code))


@triton.jit
def _pairs(
    place, live, scale_place, scale_live, ROWS: tl.constexpr, INPUTS: tl.constexpr, GROUP: tl.constexpr,
    NV: tl.constexpr, HARDWARE: tl.constexpr,
):  # fmt: skip
    """A tile of e2m1 pairs times their group scales, exact in bf16. Shapes: -> [ROWS, INPUTS]."""
    pair = tl.load(place, live, other=0).to(tl.int32)
    values = tl.reshape(
        tl.join(decode_e2m1(pair & 15), decode_e2m1(pair >> 4)), (ROWS, INPUTS // GROUP, GROUP)
    )
    code = tl.load(scale_place, scale_live, other=0)
    scale = decode_e4m3(code, HARDWARE) if NV else byte_scale(code)
    return matrix(tl.reshape(values * scale[:, :, None], (ROWS, INPUTS)))


@triton.jit(do_not_specialize=["tokens"])
def quantised_linear_kernel(
    x, x_scales, weight, scales, factor, out, parts, arrived, tokens, rows, inputs, group_rows, x_stride,
    x_group_stride, x_scale_stride, x_scale_group, scale_stride, part_stride, ROWS: tl.constexpr,
    TOKENS: tl.constexpr, INPUTS: tl.constexpr, FORMAT: tl.constexpr, BYTES: tl.constexpr,
    X_FP8: tl.constexpr, HARDWARE: tl.constexpr, WHOLE: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One tile of outputs over one part of the inputs. BYTES: block scales are UE8M0, not f32."""
    row_tiles = tl.cdiv(rows, ROWS)
    token_tiles = tl.cdiv(tokens, TOKENS)
    tile = tl.program_id(0)
    # Eight row tiles take the same tokens before the next ones: both operands stay in the cache.
    first_row, first_token = tl.swizzle2d(tile // token_tiles, tile % token_tiles, row_tiles, token_tiles, 8)
    part = tl.program_id(1)
    n = first_row * ROWS + tl.arange(0, ROWS)
    t = first_token * TOKENS + tl.arange(0, TOKENS)
    wide_n, wide_t = n.to(tl.int64), t.to(tl.int64)
    k = tl.arange(0, INPUTS)
    group = (first_row * ROWS // group_rows).to(tl.int64)
    row_live, token_live = (n < rows)[:, None], (t < tokens)[:, None]
    x_place = x + (wide_t * x_stride)[:, None] + group * x_group_stride
    width = inputs if FORMAT == 0 else inputs // 2
    w_place = weight + (wide_n * width)[:, None]
    block_scales = scales + (first_row * ROWS // 128).to(tl.int64) * scale_stride
    total = tl.zeros([ROWS, TOKENS], tl.float32)
    steps = tl.cdiv(inputs, INPUTS * PARTS)
    for step in range(part * steps, (part + 1) * steps):
        start = step * INPUTS
        inside = (start + k)[None, :] < inputs
        x_live = token_live if WHOLE else token_live & inside
        values = tl.load(x_place + (start + k)[None, :], x_live, other=0.0)
        if FORMAT == 0:
            w_live = row_live if WHOLE else row_live & inside
            code = tl.load(w_place + (start + k)[None, :], w_live, other=0)
            scale = tl.load(block_scales + start // 128, start < inputs, other=0)
            scale = byte_scale(scale) if BYTES else scale
            if X_FP8:
                live = (t < tokens) & (start < inputs)
                place = x_scales + wide_t * x_scale_stride + group * x_scale_group + start // 128
                both = scale * tl.load(place, live, other=0.0)
                if HARDWARE:
                    w, operand = code.to(tl.float8e4nv, bitcast=True), values.to(tl.float8e4nv, bitcast=True)
                else:
                    w, operand = matrix(decode_e4m3(code)), matrix(decode_e4m3(values))
                total += tl.dot(w, tl.trans(operand)) * both[None, :]
            else:
                operand = tl.trans(values if HARDWARE else matrix(widen(values)))
                total += tl.dot(_codes(code, HARDWARE), operand) * scale
        else:
            GROUP: tl.constexpr = 16 if FORMAT == 1 else 32
            byte = start // 2 + tl.arange(0, INPUTS // 2)[None, :]
            g = start // GROUP + tl.arange(0, INPUTS // GROUP)[None, :]
            w_live = row_live if WHOLE else row_live & (byte < width)
            s_live = row_live if WHOLE else row_live & (g < inputs // GROUP)
            s_place = scales + (wide_n * scale_stride)[:, None] + g
            w = _pairs(w_place + byte, w_live, s_place, s_live, ROWS, INPUTS, GROUP, FORMAT == 1, HARDWARE)
            operand = values if HARDWARE else matrix(widen(values))
            total = add_product(total, w, tl.trans(operand))
    place = wide_t[:, None] * rows + n[None, :]
    live = token_live & (n < rows)[None, :]
    total = tl.trans(total.to(tl.float32))
    if PARTS == 1:
        _finish(out + place, total, factor, live, FORMAT == 1)
    else:
        tl.store(parts + part.to(tl.int64) * part_stride + place, total, live)
        tl.debug_barrier()
        if tl.atomic_add(arrived + tile, 1, sem="acq_rel") == PARTS - 1:
            # The last one to arrive adds the parts in their order, so that bits do not depend on the race.
            total = tl.zeros([TOKENS, ROWS], tl.float32)
            place_of_part = parts + place
            for _ in tl.static_range(PARTS):
                total += tl.load(place_of_part, live, other=0.0, cache_modifier=".cg")
                place_of_part += part_stride
            _finish(out + place, total, factor, live, FORMAT == 1)
            tl.store(arrived + tile, 0)


@triton.jit
def _finish(place, total, factor, live, NV: tl.constexpr):
    """The sums as the result has them."""
    if NV:
        total = total * tl.load(factor)
    if place.dtype.element_ty == tl.float32:
        tl.store(place, total, live)
    else:
        tl.store(place, to_bf16(total), live)


def quantised_linear(
    x: Tensor,
    x_scales: Tensor | None,
    weight: Tensor,
    scales: Tensor,
    global_scale: Tensor | None,
    *,
    format: str,
    out_dtype: torch.dtype,
    groups: int = 1,
    arrived: Tensor | None = None,
    tile: Tile | None = None,
    start: bool = True,
) -> Tensor:
    """x @ weight^T in one pass over the stored codes; with groups every group of rows has inputs of its own.

    `arrived` holds zeros that no launch uses at the same time; each leaves zeros. Without `start` the kernel
    is compiled and nothing runs; the first call does that for what other tokens take. Shapes: x bf16
    [T, G, in], or float8_e4m3fn with x_scales f32 [T, G, in/128] (fp8_block only); weight, scales and
    global_scale as `linear` has them -> [T, rows].
    """
    tokens, _, inputs = x.shape
    rows = weight.shape[0]
    out = x.new_empty(tokens, rows, dtype=out_dtype)
    cut = tile or choose_tile(tokens, rows, inputs)
    tiles = pieces(rows, cut.rows) * pieces(tokens, cut.tokens)
    parts = out
    if cut.split > 1:
        parts = x.new_empty(cut.split, tokens, rows, dtype=torch.float32)
        arrived = counters(tiles, x.device) if arrived is None or arrived.shape[0] < tiles else arrived
    one_byte, quantised = torch.uint8, x_scales is not None
    stored = scales if scales.dtype == torch.float32 else scales.view(one_byte)
    first = launch(
        quantised_linear_kernel, (tiles, cut.split), x, x.view(one_byte) if quantised else x,
        stored if x_scales is None else x_scales, weight.view(one_byte), stored,
        stored if global_scale is None else global_scale, out, parts, out if arrived is None else arrived,
        tokens, rows, inputs, rows // groups, x.stride(0), x.stride(1),
        0 if x_scales is None else x_scales.stride(0), 0 if x_scales is None else x_scales.stride(1),
        scales.stride(0), tokens * rows, ROWS=cut.rows, TOKENS=cut.tokens, INPUTS=cut.inputs,
        FORMAT=FORMATS[format], BYTES=scales.dtype != torch.float32, X_FP8=quantised,
        HARDWARE=native_e4m3(x), WHOLE=inputs % (cut.inputs * cut.split) == 0, PARTS=cut.split,
        num_warps=cut.warps, num_stages=cut.stages, start=start,
    )  # fmt: skip
    if first and tile is None:
        for other in tiles_of(rows, inputs):
            quantised_linear(
                x[:1], None if x_scales is None else x_scales[:1], weight, scales, global_scale,
                format=format, out_dtype=out_dtype, groups=groups, tile=other, start=False,
            )  # fmt: skip
    return out


def counters(tiles: int, device: torch.device) -> Tensor:
    """Zeros for the parts of split sums to count on; every launch leaves zeros behind."""
    return torch.zeros(tiles, dtype=torch.int32, device=device)


def choose_tile(tokens: int, rows: int, inputs: int) -> Tile:
    """How a product is cut: few tokens get narrow tiles, few programs get sums in parts."""
    width = next((width for width in WIDTHS if tokens <= width), WIDTHS[-1])
    tiles, split = pieces(rows, ROWS) * pieces(tokens, width), 1
    while tiles * split * 2 <= PROGRAMS and inputs // (split * 2) >= LEAST_INPUTS:
        split *= 2
    return Tile(ROWS, width, SCALED, split, 4, 3)


def tiles_of(rows: int, inputs: int) -> tuple[Tile, ...]:
    """All that `choose_tile` answers, whatever the tokens."""
    tokens = (*WIDTHS[:-1], *range(WIDTHS[-1], PROGRAMS * WIDTHS[-1] + 1, WIDTHS[-1]))
    return tuple(dict.fromkeys(choose_tile(t, rows, inputs) for t in tokens))
