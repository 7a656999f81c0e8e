"""Listed rows of `fp8_ds_mla` pages into shared memory as bf16: 64 rows of 8 blocks of 64 channels.

A block of channels is what matrix units read: rows of 128 bytes whose eight 16-byte pieces are exchanged by
the row's number. In a group of four channels the second and third change places, which a dot product does
not see: even bytes of a word become one pair, odd bytes the other, without a permutation.
"""

import cutlass
from cutlass import Int32, Int64, cute
from cutlass.cutlass_dsl import T, dsl_user_op

from dsv4core_cuda.cutedsl.kernels._ptx import _asm, load_i32, load_words, pair_mul, permuted, write_shared

BLOCK = 64 * 128
"""Bytes of a block of 64 channels."""
LARGE = -0x7F7F7F80
"""The top bit of four scale bytes."""
TWO_124 = 0x7D807D80
"""2^124 in bf16, twice."""


@dsl_user_op
def _picked(word, order, *, loc=None, ip=None):
    """Bytes of a word (nibbles 0..3) and zeros (4) as the register `order` says."""
    return Int32(_asm(T.i32(), [Int32(word), Int32(order)], "prmt.b32 $0, $1, 0, $2;", "=r,r,r", loc, ip))


def exchanged(words):
    """Eight channels of bf16 with the second and third of four in each other's place."""
    a, b, c, d = words
    return [permuted(a, b, 0x5410), permuted(a, b, 0x7632), permuted(c, d, 0x5410), permuted(c, d, 0x7632)]


def decoded(words, scale):
    """Codes e4m3 times a pair of equal bf16, as pairs of bf16. Shapes: 2 words -> 4.

    A code's exponent and mantissa, moved behind a bf16 sign, are its value times 2^-120, subnormal or not.
    """
    found = []
    for w in words:
        even = ((w << 8) & Int32(-0x7FFF8000)) | ((w << 4) & 0x07F007F0)
        odd = (w & Int32(-0x7FFF8000)) | ((w >> 4) & 0x07F007F0)
        found += [pair_mul(even, scale), pair_mul(odd, scale)]
    return found


@cute.jit
def listed_slot(n, width, length, list_, extra_width, extra_length, extra_list):
    """Entry n of both lists, one behind the other, as it is there; -1 behind a length."""
    slot = Int32(-1)
    if n < width:
        if n < length:
            slot = load_i32(list_ + Int64(n) * 4)
    else:
        m = n - width
        if (m < extra_width) & (m < extra_length):
            slot = load_i32(extra_list + Int64(m) * 4)
    return slot


@cute.jit
def row_place(
    slot, first, nothing, cache, stride, limit, extra, extra_stride, extra_limit,
    ROWS: cutlass.Constexpr, EXTRA_ROWS: cutlass.Constexpr,
):  # fmt: skip
    """Addresses of a slot's row and of its scales, and 1 where a row is; `first`: a slot of the first list.

    Where none is, both addresses are `nothing`, which has zeros.
    """
    row, scales, live = nothing, nothing, Int32(0)
    if first:
        if (slot >= 0) & (slot < limit):
            page = cache + Int64(slot // ROWS) * stride
            row = page + slot % ROWS * 576
            scales = page + (ROWS * 576 + slot % ROWS * 8)
            live = Int32(1)
    else:
        if (slot >= 0) & (slot < extra_limit):
            page = extra + Int64(slot // EXTRA_ROWS) * extra_stride
            row = page + slot % EXTRA_ROWS * 576
            scales = page + (EXTRA_ROWS * 576 + slot % EXTRA_ROWS * 8)
            live = Int32(1)
    return row, scales, live


@cute.jit
def load_rows(raw, row, scales, lane, FIRST: cutlass.Constexpr, COUNT: cutlass.Constexpr):
    """Begin to load rows FIRST .. FIRST + COUNT - 1 of a warp's eight into `raw`, 37 i32.

    Lanes r, r + 8, .. have the addresses of row r. A lane takes 16 bytes of a row: 28 the codes, four the
    first half of the rotated channels. Lanes of odd blocks of channels are a row ahead or behind, so that
    two blocks, which lie on the same banks, are never stored to one bank at once.
    """
    ahead = lane // 4 % 2
    for i in cutlass.range_constexpr(FIRST, FIRST + COUNT):
        words = load_words(cute.arch.shuffle_sync(row, i ^ ahead) + lane * 16, 4)
        for j in cutlass.range_constexpr(4):
            raw[(i - FIRST) * 4 + j] = words[j]
    if cutlass.const_expr(FIRST == 0):
        words = load_words(cute.arch.shuffle_sync(row, lane // 4) + (512 + lane % 4 * 16), 4)
        for j in cutlass.range_constexpr(4):
            raw[32 + j] = words[j]
        # lanes 0..15 hold scales of channels 0..255, lanes 16..31 the others
        raw[36] = load_i32(scales + lane // 16 * 4)


@cute.jit
def store_rows(keys, raw, warp, lane, FIRST: cutlass.Constexpr, COUNT: cutlass.Constexpr):
    """Rows of `load_rows`, decoded, to the shared address `keys`."""
    ahead = lane // 4 % 2
    order = 0x4040 + lane // 4 % 4 * 0x101
    target = keys + (lane // 4 * BLOCK + warp * 1024)
    piece = (lane % 4 * 2) ^ ahead if lane < 28 else (lane % 4) ^ ahead
    large = cute.arch.vote_any_sync((raw[36] & Int32(LARGE)) != 0)
    for i in cutlass.range_constexpr(FIRST, FIRST + COUNT):
        words = [raw[(i - FIRST) * 4 + j] for j in range(4)]
        here = target + (i & -2) * 128 + ((i & 1) ^ ahead) * 128
        mine = cute.arch.shuffle_sync(raw[36], (i ^ ahead) + (lane & 16))
        if lane < 28:
            low, high = _scaled(words, _picked(mine, order), large)
            write_shared(here + ((piece ^ i) << 4), low)
            write_shared(here + ((piece ^ i ^ 1) << 4), high)
        else:
            write_shared(here + ((piece ^ i) << 4), exchanged(words))
    if cutlass.const_expr(FIRST == 0):
        last = keys + (7 * BLOCK + warp * 1024 + lane // 4 * 128)
        tail = exchanged([raw[32 + j] for j in range(4)])
        write_shared(last + (((4 + lane % 4) ^ (lane // 4)) << 4), tail)


@cute.jit
def _scaled(words, scale, large):
    """16 codes times 2^(byte - 127), the byte in both halves of `scale`. Shapes: 4 words -> 2 times 4."""
    factor = scale * 128 + 0x3C003C00  # 2^(byte - 7) in bf16, which a byte above 134 passes
    if large:
        factor = scale * 128 - 0x02000200 if scale >= 0x800080 else factor  # 2^(byte - 131)
    low, high = decoded(words[:2], factor), decoded(words[2:], factor)
    if large:
        more = Int32(TWO_124) if scale >= 0x800080 else Int32(0x3F803F80)
        low, high = [pair_mul(x, more) for x in low], [pair_mul(x, more) for x in high]
    return low, high
