"""Codes of index rows as operands of matrix products: bits are moved into place, nothing is converted.

The order of channels in a product has no meaning, so a thread keeps the codes of the words that it read, and
queries are laid out as that makes it: step s takes one word of codes in fp8, half a word in mxfp4.
"""

from cutlass import Float32, Int32

from dsv4core_cuda.cutedsl.kernels._async import pair_mul_f16
from dsv4core_cuda.cutedsl.kernels._numerics import choose
from dsv4core_cuda.cutedsl.kernels._ptx import from_bits, mul, pair_bf16, pair_mul, write_shared

SIGNS, KEPT = -0x7FFF8000, -0x7E3F7E40
"""0x80008000 and 0x81c081c0 as i32: bits of pairs of f16 or bf16 that codes have."""


def halves(word):
    """Four e4m3 codes as two pairs of f16, times 2^-8: bytes 0 and 2, bytes 1 and 3.

    A code's exponent and mantissa behind an f16 sign are the value times 2^-8, subnormal or not.
    """
    even = ((word << 7) & 0x3F803F80) | ((word << 8) & Int32(SIGNS))
    odd = ((word >> 1) & 0x3F803F80) | (word & Int32(SIGNS))
    return even, odd


def quarters(word):
    """Eight e2m1 codes as four pairs of bf16, times 2^-126: nibbles i and i + 4.

    A product with two powers of two brings a code's sign and its other bits to their places at once.
    """
    found = []
    for part in (word, word >> 8):
        for mask, places in ((0x000F000F, 0x1040), (0x00F000F0, 0x104)):
            found.append(((part & mask) * places) & Int32(KEPT))
    return found


def place(queries, head, column):
    """Where the pair of columns `column`, `column` + 1 of a head lies."""
    chunk = column % 64 // 8
    return queries + column // 64 * 8192 + head * 128 + ((chunk ^ (head % 8)) << 4) + column % 8 * 2


def stage_fp8(queries, head, piece, word):
    """Codes 4 piece .. of a head, at their columns and times 2^7. Shapes: i32."""
    half, thread, j = piece // 16, piece % 16 // 4, piece % 4
    column = (half * 4 + j) * 16 + thread * 2
    even, odd = halves(word)
    grown = Int32(0x78007800)  # 2^15 in f16, twice
    write_shared(place(queries, head, column), [pair_mul_f16(even, grown)])
    write_shared(place(queries, head, column + 8), [pair_mul_f16(odd, grown)])


def stage_mxfp4(queries, head, piece, word, byte):
    """Codes 8 piece .. of a head with the scale `byte`, at their columns."""
    thread, n = piece // 4, piece % 4
    scale = from_bits(byte << 23)
    scale = choose(Float32, byte > 0, scale, from_bits(Int32(0x400000)))
    pairs = []
    for pair in quarters(word):
        low, high = from_bits(pair << 16), from_bits(pair & Int32(-65536))
        big = from_bits(Int32(253 << 23))  # 2^126
        pairs.append(pair_bf16(mul(mul(low, big), scale), mul(mul(high, big), scale)))
    for i in range(4):
        column = (2 * n + i // 2) * 16 + thread * 2 + i % 2 * 8
        write_shared(place(queries, head, column), [pairs[i]])


def operands_fp8(upper, lower):
    """Steps of a product from the 32 codes of rows r and r + 8 that a thread read. Shapes: 8 i32 each."""
    found = []
    for s in range(8):
        (a, b), (c, d) = halves(upper[s]), halves(lower[s])
        found += [a, c, b, d]
    return found


def operands_mxfp4(upper, lower, by_upper, by_lower):
    """As `operands_fp8` from any words of codes; `by` are pairs of bf16 that a row's codes are times."""
    found = []
    for one, other in zip(upper, lower, strict=True):
        a = [pair_mul(x, by_upper) for x in quarters(one)]
        b = [pair_mul(x, by_lower) for x in quarters(other)]
        for half in range(2):
            found += [a[2 * half], b[2 * half], a[2 * half + 1], b[2 * half + 1]]
    return found
