"""Listed rows of `fp8_ds_mla` pages into shared memory as bf16: 128 rows in 8 blocks of 64 channels.

A block of channels is what matrix units read: rows of 128 bytes whose eight 16-byte pieces are exchanged by
the number of the row.
"""

import cutlass
from cutlass import Int32, Int64, cute
from cutlass.cutlass_dsl import T, dsl_user_op

from dsv4core_cuda.cutedsl.kernels._ptx import _asm, load_words, pair_mul, write_shared

BLOCK = 128 * 128
"""Bytes of a block of 64 channels."""
TWO_120 = 0x7B807B80
"""2^120 in bf16, twice."""


@dsl_user_op
def _spread(w, pick, *, loc=None, ip=None):
    """Bytes of a word (nibbles 0..3 of `pick`) and zeros (4)."""
    return Int32(_asm(T.i32(), [Int32(w)], f"prmt.b32 $0, $1, 0, {pick};", "=r,r", loc, ip))


def decode_four(w, scale):
    """Four e4m3 codes times a pair of equal bf16 powers of two, as two pairs of bf16.

    A code's exponent and mantissa, moved behind a bf16 sign, are the value times 2^-120, subnormal or not.
    """
    pairs = []
    for pick in (0x1404, 0x3424):
        x = _spread(w, pick)
        x = (x & Int32(-0x7FFF8000)) | ((x >> 4) & 0x07F007F0)
        pairs.append(pair_mul(pair_mul(x, Int32(TWO_120)), scale))
    return pairs


@cute.jit
def listed(
    n, t, cache, slots, lens, slot_stride, extra, extra_slots, extra_lens, extra_slot_stride, width,
    extra_width, stride, limit, extra_stride, extra_limit, rows, extra_rows,
):  # fmt: skip
    """Addresses of row n of both lists, one behind the other, and of its scales; 1 where a row is."""
    row = cache
    scales = cache
    live = Int32(0)
    if n < width:
        length = load_word(lens + Int64(t) * 4)
        slot = load_word(slots + (Int64(t) * slot_stride + n) * 4)
        if (n < length) & (slot >= 0) & (slot < limit):
            page = cache + Int64(slot // rows) * stride
            row = page + (slot % rows) * 576
            scales = page + rows * 576 + (slot % rows) * 8
            live = Int32(1)
    else:
        if n < width + extra_width:
            m = n - width
            length = load_word(extra_lens + Int64(t) * 4)
            slot = load_word(extra_slots + (Int64(t) * extra_slot_stride + m) * 4)
            if (m < length) & (slot >= 0) & (slot < extra_limit):
                page = extra + Int64(slot // extra_rows) * extra_stride
                row = page + (slot % extra_rows) * 576
                scales = page + extra_rows * 576 + (slot % extra_rows) * 8
                live = Int32(1)
    return row, scales, live


@cute.jit
def load_word(address):
    """An i32 of global memory."""
    return cute.make_tensor(
        cute.make_ptr(Int32, address, cute.AddressSpace.gmem, assumed_align=4), cute.make_layout(1)
    )[0]


@cute.jit
def load_rows(keys, row, scales, live, warp, lane):
    """The 16 rows of a warp to the shared address `keys`; zeros where no row is.

    `row`, `scales`, `live` are those of row `lane` of the 16.
    """
    raw, rest = [], []
    for i in cutlass.range_constexpr(16):
        start = cute.arch.shuffle_sync(row, i)
        # 28 lanes take the 448 codes, four the first half of the 64 rotated channels
        raw.append(load_words(start + lane * 16, 4))
    for j in cutlass.range_constexpr(2):
        start = cute.arch.shuffle_sync(row, j * 8 + lane // 4)
        rest.append(load_words(start + (512 + lane % 4 * 16), 4))
    first, second = load_words(scales, 2)
    # Two blocks of 64 channels lie on the same banks: every other one stores its halves the other way round.
    swapped = (lane // 4) % 2
    for i in cutlass.range_constexpr(16):
        r = warp * 16 + i
        there = 0 - cute.arch.shuffle_sync(live, i)
        low, high = cute.arch.shuffle_sync(first, i), cute.arch.shuffle_sync(second, i)
        a, b, c, d = [w & there for w in raw[i]]
        base = keys + r * 128
        if lane < 28:
            word = low if lane < 16 else high
            byte = (word >> (lane // 4 % 4 * 8)) & 0xFF
            # 2^(byte - 127) in bf16, twice: exponents are the byte, but that of byte 0 is subnormal
            scale = byte << 7 if byte > 0 else Int32(0x40)
            scale = scale | (scale << 16)
            x = c if swapped == 1 else a
            y = d if swapped == 1 else b
            z = a if swapped == 1 else c
            w = b if swapped == 1 else d
            block = base + lane // 4 * BLOCK
            chunk = lane % 4 * 2
            here = chunk + swapped
            write_shared(block + ((here ^ (r % 8)) << 4), decode_four(x, scale) + decode_four(y, scale))
            here = chunk + 1 - swapped
            write_shared(block + ((here ^ (r % 8)) << 4), decode_four(z, scale) + decode_four(w, scale))
        else:
            write_shared(base + (7 * BLOCK + (((lane - 28) ^ (r % 8)) << 4)), [a, b, c, d])
    for j in cutlass.range_constexpr(2):
        i = j * 8 + lane // 4
        r = warp * 16 + i
        mask = 0 - cute.arch.shuffle_sync(live, i)
        words = [w & mask for w in rest[j]]
        write_shared(keys + (7 * BLOCK + r * 128 + (((4 + lane % 4) ^ (r % 8)) << 4)), words)
