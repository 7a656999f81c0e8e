"""Rows of pages as kernels see them: where a slot's bytes lie, and the codecs of every layout.

A page is addressed by bytes from its tensor's base and stride, in 64 bits. Bases may be odd (layers share an
allocation), so wider words are used only where ALIGN, the alignment that the launcher found, allows them.
"""

import triton
import triton.language as tl

from dsv4core.kernels.triton.numerics import (
    bits_of,
    byte_scale,
    decode_e4m3,
    decode_e4m3_fnuz,
    encode_e2m1,
    encode_e4m3,
    encode_e4m3_fnuz,
    exponent_e2m1,
    exponent_e4m3,
    finite,
    finite_bf16,
    float_of,
    largest,
    on_grid,
    power_of_two,
    scale_byte,
    settle,
    spoilt,
    to_bf16,
    widen,
)

MAIN = ("fp8_ds_mla", "fp8_ds_mla_fnuz", "bf16_row", "fp8_row")
INDEX = ("index_fp8", "index_fp8_ue8m0x4", "index_fp8_hadamard_f32", "index_mxfp4", "index_mxfp4_hadamard")


@triton.jit
def store_as(pointer, value, mask):
    """Store f32 in the pointer's type: rounded once to bf16, or as it is."""
    if pointer.dtype.element_ty == tl.bfloat16:
        tl.store(pointer, to_bf16(value), mask)
    else:
        tl.store(pointer, value, mask)


@triton.jit
def store_u16(start, i, value, mask, ALIGN: tl.constexpr):
    """Store the low 16 bits of i32 as item i behind byte pointers.

    The pointer is cast before items are counted: a compiler sees neighbours in `start + i`, not in bytes.
    """
    if ALIGN >= 2:
        tl.store(start.to(tl.pointer_type(tl.uint16)) + i, value.to(tl.uint16), mask)
    else:
        tl.store(start + 2 * i, (value & 0xFF).to(tl.uint8), mask)
        tl.store(start + 2 * i + 1, ((value >> 8) & 0xFF).to(tl.uint8), mask)


@triton.jit
def store_u32(pointer, value, mask, ALIGN: tl.constexpr):
    """Store i32 at byte pointers."""
    if ALIGN >= 4:
        tl.store(pointer.to(tl.pointer_type(tl.int32)), value, mask)
    else:
        for i in tl.static_range(4):
            tl.store(pointer + i, ((value >> (8 * i)) & 0xFF).to(tl.uint8), mask)


@triton.jit
def load_u16(start, i, mask, ALIGN: tl.constexpr):
    """Item i of 16 bits behind byte pointers, as i32; 0 where masked."""
    if ALIGN >= 2:
        return tl.load(start.to(tl.pointer_type(tl.uint16)) + i, mask, other=0).to(tl.int32)
    else:
        low = tl.load(start + 2 * i, mask, other=0).to(tl.int32)
        return low | (tl.load(start + 2 * i + 1, mask, other=0).to(tl.int32) << 8)


@triton.jit
def load_u32(start, i, mask, ALIGN: tl.constexpr):
    """Item i of 32 bits behind byte pointers; 0 where masked."""
    if ALIGN >= 4:
        return tl.load(start.to(tl.pointer_type(tl.int32)) + i, mask, other=0)
    else:
        low = load_u16(start, 2 * i, mask, ALIGN)
        return low | (load_u16(start, 2 * i + 1, mask, ALIGN) << 16)


@triton.jit
def load_bf16(start, i, mask, ALIGN: tl.constexpr):
    """bf16 item i behind byte pointers as f32; 0 where masked."""
    return float_of(load_u16(start, i, mask, ALIGN) << 16)


@triton.jit
def _store_groups(
    start, behind, live, grouped, amax, LAYOUT: tl.constexpr, HARDWARE: tl.constexpr
):  # fmt: skip
    """Codes at `start` and scales at `behind`. Shapes: grouped f32 [R, 8, 64], of which seven count."""
    R: tl.constexpr = grouped.shape[0]
    exponent = exponent_e4m3(tl.maximum(amax, 1e-4))
    if LAYOUT == "fp8_ds_mla_fnuz":
        exponent += 1
        codes = encode_e4m3_fnuz(grouped * power_of_two(-exponent)[:, :, None])
    else:
        codes = encode_e4m3(grouped * power_of_two(-exponent)[:, :, None], HARDWARE)
    d = tl.arange(0, 512)[None, :]
    tl.store(start[:, None] + d, tl.reshape(codes, (R, 512)), live[:, None] & (d < 448))
    group = tl.arange(0, 8)[None, :]
    byte = tl.where(group < 7, scale_byte(exponent), 0).to(tl.uint8)
    tl.store(behind[:, None] + group, byte, live[:, None] & (group < 8))


@triton.jit
def store_main_rows(
    cache, stride, slots, live, nope, tail,
    rows: tl.constexpr, LAYOUT: tl.constexpr, ALIGN: tl.constexpr, HARDWARE: tl.constexpr,
):  # fmt: skip
    """Write rows of a main cache: exactly their bytes.

    Shapes: slots i64 [R] (>= 0 where live), nope [R, 512] f32, or bf16 as it was loaded (channels from 448
    on are ignored), tail f32 [R, 64] already rotated. Values are rounded here, as the layout says.
    """
    R: tl.constexpr = nope.shape[0]
    d = tl.arange(0, 512)[None, :]
    j = tl.arange(0, 64)[None, :]
    head = live[:, None] & (d < 448)
    all_live = live[:, None] & (j < 64)
    page = cache + (slots // rows) * stride
    row = slots % rows
    if LAYOUT == "bf16_row":
        start = (page + row * 1024)[:, None]
        values, _ = settle(tl.reshape(nope, (R, 8, 64)))
        store_u16(start, d, tl.reshape(bits_of(values), (R, 512)) >> 16, head, ALIGN)
        store_u16(start + 896, j, bits_of(finite_bf16(tail)) >> 16, all_live, ALIGN)
    elif LAYOUT == "fp8_row":
        start = (page + row * 512)[:, None]
        tl.store(start + d, encode_e4m3(finite(widen(nope)), HARDWARE), head)
        tl.store(start + 448 + j, encode_e4m3(finite(tail), HARDWARE), all_live)
    else:
        start = page + row * 576
        behind = page + rows * 576 + row * 8
        grouped = on_grid(tl.reshape(nope, (R, 8, 64)))
        amax = largest(grouped, 2)
        _store_groups(start, behind, live, grouped, amax, LAYOUT, HARDWARE)
        store_u16(start[:, None] + 448, j, bits_of(finite_bf16(tail)) >> 16, all_live, ALIGN)
        if spoilt(amax):  # seldom, and only now: no warp waits for another before it has stored
            grouped = finite(grouped)
            _store_groups(start, behind, live, grouped, largest(grouped, 2), LAYOUT, HARDWARE)


@triton.jit
def load_main_rows(
    cache, stride, page, row, live,
    rows: tl.constexpr, LAYOUT: tl.constexpr, ALIGN: tl.constexpr, HARDWARE: tl.constexpr,
):  # fmt: skip
    """Values of rows of a main cache, exact in bf16; zeros where not live.

    Shapes: page and row i32 [R] (>= 0) -> nope f32 [R, 512] (448.. are zero), tail f32 [R, 64].
    """
    R: tl.constexpr = page.shape[0]
    d = tl.arange(0, 512)[None, :]
    j = tl.arange(0, 64)[None, :]
    head = live[:, None] & (d < 448)
    all_live = live[:, None] & (j < 64)
    page = cache + page.to(tl.int64) * stride
    if LAYOUT == "bf16_row":
        start = (page + row * 1024)[:, None]
        nope = load_bf16(start, d, head, ALIGN)
        tail = load_bf16(start + 896, j, all_live, ALIGN)
    elif LAYOUT == "fp8_row":
        start = (page + row * 512)[:, None]
        nope = decode_e4m3(tl.load(start + d, head, other=0), HARDWARE)
        tail = decode_e4m3(tl.load(start + 448 + j, all_live, other=0), HARDWARE)
    else:
        start = (page + row * 576)[:, None]
        # Eight at a time, as many as a store of bf16 takes: nothing moves between threads.
        codes = tl.load(start + tl.max_contiguous(d, (1, 8)), head, other=0)
        group = tl.arange(0, 8)[None, :]
        byte = tl.load((page + rows * 576 + row * 8)[:, None] + group, live[:, None] & (group < 7), other=127)
        if LAYOUT == "fp8_ds_mla_fnuz":
            values = decode_e4m3_fnuz(codes)
        else:
            values = decode_e4m3(codes, HARDWARE)
        scaled = tl.reshape(values, (R, 8, 64)) * byte_scale(byte)[:, :, None]
        nope = tl.reshape(scaled, (R, 512))
        tail = load_bf16(start + 448, j, all_live, ALIGN)
    return nope, tail


@triton.jit
def quantise_fp8(grouped, amax, PLAIN: tl.constexpr, HARDWARE: tl.constexpr):
    """e4m3 codes of rows of 128 and one scale a row: 2^E, or amax / 448 when PLAIN.

    Shapes: f32 [R, 4, 32] on the bf16 grid with the largest magnitudes [R, 4] -> u8 [R, 128], f32 [R].
    """
    R: tl.constexpr = grouped.shape[0]
    amax = tl.maximum(tl.max(amax, 1), 1e-4)
    if PLAIN:
        scale = tl.div_rn(amax, tl.full(amax.shape, 448.0, tl.float32))
        scaled = tl.div_rn(grouped, scale[:, None, None] + tl.zeros_like(grouped))
    else:
        exponent = exponent_e4m3(amax)
        scale = power_of_two(exponent)
        scaled = grouped * power_of_two(-exponent)[:, None, None]
    return tl.reshape(encode_e4m3(scaled, HARDWARE), (R, 128)), scale


@triton.jit
def quantise_mxfp4(grouped, amax):
    """Packed e2m1 pairs, even element in the low nibble, and a byte of scale per 32.

    Shapes: f32 [R, 4, 32] on the bf16 grid with the largest magnitudes [R, 4] -> u8 [R, 64], u8 [R, 4].
    """
    R: tl.constexpr = grouped.shape[0]
    byte = scale_byte(exponent_e2m1(tl.maximum(amax, 7.052966104933725e-38)))  # 6 * 2^-126
    codes = encode_e2m1(grouped * power_of_two(127 - byte)[:, :, None])
    even, odd = tl.split(tl.reshape(codes, (R, 64, 2)))
    return (even | (odd << 4)).to(tl.uint8), byte.to(tl.uint8)


@triton.jit
def store_index_rows(
    cache, stride, slots, live, values,
    rows: tl.constexpr, LAYOUT: tl.constexpr, ALIGN: tl.constexpr, HARDWARE: tl.constexpr,
):  # fmt: skip
    """Write rows of an index cache: exactly their bytes. Shapes: slots i64 [R], values f32 [R, 128]."""
    grouped, amax = settle(tl.reshape(values, (values.shape[0], 4, 32)))
    page = cache + (slots // rows) * stride
    row = slots % rows
    if LAYOUT == "index_mxfp4" or LAYOUT == "index_mxfp4_hadamard":
        j = tl.arange(0, 64)[None, :]
        g = tl.arange(0, 4)[None, :]
        packed, byte = quantise_mxfp4(grouped, amax)
        tl.store((page + row * 64)[:, None] + j, packed, live[:, None] & (j < 64))
        tl.store((page + rows * 64 + row * 4)[:, None] + g, byte, live[:, None] & (g < 4))
    else:
        j = tl.arange(0, 128)[None, :]
        codes, scale = quantise_fp8(grouped, amax, LAYOUT == "index_fp8_hadamard_f32", HARDWARE)
        tl.store((page + row * 128)[:, None] + j, codes, live[:, None] & (j < 128))
        word = bits_of(scale)
        if LAYOUT == "index_fp8_ue8m0x4":
            byte = word >> 23
            word = byte | (byte << 8) | (byte << 16) | (byte << 24)
        store_u32(page + rows * 128 + row * 4, word, live, ALIGN)
