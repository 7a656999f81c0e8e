"""The canonical arithmetic (CA1) for a thread's values: every rounding is an operation written here.

The same steps as `dsv4core.kernels.triton.numerics`, whose docstrings say why they are right.
"""

import cutlass
from cutlass import Float32, Int32, Int64, cute

from dsv4core_cuda.cutedsl.kernels._ptx import (
    add,
    add_down,
    bits,
    div,
    fma,
    from_bits,
    from_i64,
    larger,
    mul,
    sqrt,
    sub,
    wide_mul,
)

MAGIC = 12582912.0
"""1.5 * 2^23: f32 near it are whole numbers, in their low bits."""
INFINITE = 0x7F800000


def choose(kind, condition, one, other):
    """One of two values of a type, without a branch."""
    return kind(cutlass.select_(condition, kind(one), kind(other)))


def power_of_two(k):
    """2^k exactly, -126 <= k <= 127. Shapes: i32 -> f32."""
    return from_bits((k + 127) << 23)


def exp_nonpositive(x):
    """exp(x) for x <= 0 (CA1 rule 2); below -87 exactly 0, where what is computed does not matter.

    Adding 1.5 * 2^23 rounded down gives the floor, and its low bits are what the exponent grows by.
    """
    shifted = add_down(add(mul(x, 1.44269504), 0.5), MAGIC)
    k = sub(shifted, MAGIC)
    t = fma(k, -0.693359375, x)  # k has 7 bits and the constant 9: their product is exact
    t = sub(t, mul(k, -2.12194440e-4))
    p = Float32(1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = add(mul(p, t), c)
    y = add(add(mul(p, mul(t, t)), t), 1.0)
    grown = from_bits(bits(y) + (bits(shifted) << 23))
    return choose(Float32, x < -87.0, 0.0, grown)


def magnitude(x):
    """The bits of |x|, which order as magnitudes do. Shapes: f32 -> i32."""
    return bits(x) & 0x7FFFFFFF


def widest(values):
    """The bits of the largest magnitude of a thread's values; NaN is above infinity."""
    found = magnitude(values[0])
    for x in values[1:]:
        found = cutlass.max(found, magnitude(x))
    return found


def across(value, lanes, kind):
    """Combine an i32 over `lanes` neighbouring lanes of a warp: "max" or "add"."""
    if lanes == 32:
        return cute.arch.warp_redux_sync(value, kind)
    step = lanes // 2
    while step:
        other = cute.arch.shuffle_sync_bfly(value, step)
        value = cutlass.max(value, other) if kind == "max" else value + other
        step //= 2
    return value


def whole_squares(values, field):
    """The sum of a thread's squares on the grid of CA1 rule 3. Shapes: field i32 -> i64."""
    scale = power_of_two(147 - field)
    total = Int64(0)
    for y in values:
        i = bits(add(mul(y, scale), MAGIC)) - 0x4B400000
        total += wide_mul(i, i)
    return total


def over_warp(total):
    """The sum of i64 below 2^46 over a warp, in two parts that fit 32 bits: the same for every order."""
    low = across(Int32(total & 0x1FFFFFF), 32, "add")
    high = across(Int32(total >> 25), 32, "add")
    return Int64(low) + (Int64(high) << 25)


def inverse_rms(total, field, n, eps):
    """1 / sqrt(mean + eps) from the sum of squares on the grid (n is a power of two)."""
    back = power_of_two(field - 147)
    square = mul(mul(from_i64(total), back), back)
    return div(Float32(1.0), sqrt(add(mul(square, 1.0 / n), eps)))


def rotate(even, odd, cos, sin):
    """Turn a pair (CA1 rule 5)."""
    return sub(mul(even, cos), mul(odd, sin)), add(mul(even, sin), mul(odd, cos))


def rotate_back(even, odd, cos, sin):
    """Turn a pair back (CA1 rule 5)."""
    return add(mul(even, cos), mul(odd, sin)), sub(mul(odd, cos), mul(even, sin))


def unpack_bf16(word):
    """The two bf16 of an i32, widened."""
    return from_bits(word << 16), from_bits(word & Int32(-65536))


def finite(x):
    """NaN becomes 0 and infinity 2^127."""
    size = magnitude(x)
    kept = (bits(x) & Int32(-0x80000000)) | 0x7F000000
    y = choose(Float32, size == INFINITE, from_bits(kept), x)
    return choose(Float32, size > INFINITE, 0.0, y)


def exponent_e4m3(amax):
    """Smallest E with amax <= 448 * 2^E (CA1 rule 7), of the bits of a positive normal amax."""
    return (amax >> 23) - 135 + Int32((amax & 0x7FFFFF) > 0x600000)


def exponent_e2m1(amax):
    """Smallest E with amax <= 6 * 2^E, of the bits of a positive normal amax."""
    return (amax >> 23) - 129 + Int32((amax & 0x7FFFFF) > 0x400000)


def scale_byte(exponent):
    """The UE8M0 byte clamp(E + 127, 1, 254)."""
    return cutlass.min(cutlass.max(exponent + 127, 1), 254)


def encode_e2m1(x):
    """The code 0..15 of x clamped to +-6: of three roundings, to halves, ones and twos, the smallest."""
    size = from_bits(magnitude(x))
    halves = bits(add(size, 6291456.0))
    ones = bits(add(size, 12582912.0)) + (0x4AC00000 - 0x4B400000 + 2)
    twos = bits(add(size, 25165824.0)) + (0x4AC00000 - 0x4BC00000 + 4)
    code = cutlass.min(cutlass.min(halves, ones), cutlass.min(twos, Int32(0x4AC00007))) & 7
    return code | ((bits(x) >> 28) & 8)


def maximum(values):
    """The largest of a thread's f32."""
    found = values[0]
    for x in values[1:]:
        found = larger(found, x)
    return found
