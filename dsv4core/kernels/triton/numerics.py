"""The canonical arithmetic (CA1) as Triton functions: every rounding is an operation that is written here.

Launch with `enable_fp_fusion=False` (`_launch.launch` does). Conversions go through integers where hardware
lacks them or rounds twice. Functions take and return blocks of any shape unless they say otherwise.
"""

import triton
import triton.language as tl

from dsv4core.kernels.triton._flags import INTERPRETED

# What sums of products are kept in. A matrix unit has an order of its own, which the interpreter cannot know:
# there sums are exact to far below what is kept of them, so that none shows.
SUM = tl.constexpr(tl.float64 if INTERPRETED.value else tl.float32)


@triton.jit
def bits_of(x):
    """The bits of f32. Shapes: any f32 -> i32."""
    return x.to(tl.int32, bitcast=True)


@triton.jit
def float_of(bits):
    """f32 from its bits. Shapes: any i32 -> f32."""
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def power_of_two(k):
    """2^k exactly, -126 <= k <= 127. Shapes: any i32 -> f32."""
    return float_of((k + 127) << 23)


@triton.jit
def round_bf16(x):
    """The nearest bf16, ties to even, kept in f32; NaN stays NaN."""
    return x.to(tl.bfloat16).to(tl.float32)


@triton.jit
def to_bf16(x):
    """bf16 of f32, rounded once to nearest even."""
    return x.to(tl.bfloat16)


@triton.jit
def widen(x):
    """f32 of bf16 or f32, exact."""
    return x.to(tl.float32)


@triton.jit
def finite(x):
    """NaN becomes 0 and infinity 2^127, so that a page never holds either."""
    bits = bits_of(x)
    magnitude = bits & 0x7FFFFFFF
    bits = tl.where(magnitude == 0x7F800000, (bits ^ magnitude) | 0x7F000000, bits)
    return float_of(tl.where(magnitude > 0x7F800000, 0, bits))


@triton.jit
def finite_bf16(x):
    """What a cache row holds: rounded to bf16, then finite; in f32."""
    nan = (bits_of(x) & 0x7FFFFFFF) > 0x7F800000
    return finite(round_bf16(tl.where(nan, 0.0, x)))


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def largest(x, axis: tl.constexpr):
    """Largest magnitudes along an axis; NaN wins. Shapes: f32 -> f32 without that axis."""
    if INTERPRETED:
        return float_of(tl.max(bits_of(x) & 0x7FFFFFFF, axis))
    else:
        return tl.reduce(tl.abs(x), axis, _larger)


@triton.jit
def on_grid(x):
    """The bf16 that a cache row holds of x (f32, or bf16 as it was loaded), in f32. Shapes: any."""
    if x.dtype == tl.bfloat16:
        return widen(x)
    else:
        return round_bf16(x)


@triton.jit
def spoilt(amax):
    """Whether one of these magnitudes is NaN or infinite: a scalar. Shapes: f32 [R, G] from `largest`."""
    return tl.max(tl.max(bits_of(amax), 1), 0) >= 0x7F800000


@triton.jit
def settle(x):
    """What a cache row holds of x: on the bf16 grid and finite, with the largest magnitude of each group.

    Shapes: [R, G, N] -> f32 [R, G, N], f32 [R, G]. Nearly every row is finite, so a program looks at its
    maxima and replaces single values only where one of them is not.
    """
    y = on_grid(x)
    amax = largest(y, 2)
    if spoilt(amax):
        y = finite(y)
        amax = largest(y, 2)
    return y, amax


@triton.jit
def _small_float(x, MANTISSA: tl.constexpr, LOWEST: tl.constexpr, LIMIT: tl.constexpr, SIGN: tl.constexpr):
    """Codes of the nearest small floats: ties to even, subnormals, saturating at LIMIT (f32 bits).

    LOWEST is the biased exponent of the smallest normal number. Adding 2^(e + 23 - MANTISSA) to a magnitude
    below 2^(e + 1) leaves the code in the low bits of the sum: the addition is the one rounding.
    """
    bits = bits_of(x)
    magnitude = tl.minimum(bits & 0x7FFFFFFF, LIMIT)
    SHIFT: tl.constexpr = 23 - MANTISSA
    magic = tl.maximum(magnitude & 0x7F800000, LOWEST << 23) + (SHIFT << 23)
    rounded = bits_of(float_of(magnitude) + float_of(magic))
    code = (rounded - magic) + (magic >> SHIFT) - ((LOWEST + SHIFT) << MANTISSA)
    return code | tl.where(bits < 0, SIGN, 0)


@triton.jit
def encode_e4m3(x, HARDWARE: tl.constexpr = False):
    """OCP e4m3fn codes of finite x clamped to +-448, the sign of zero kept. Shapes: any f32 -> u8.

    HARDWARE: the device converts f32 in one rounding and saturates by itself (SM90 and later).
    """
    if HARDWARE:
        return x.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    else:
        return _small_float(x, 3, 121, 0x43E00000, 0x80).to(tl.uint8)


@triton.jit
def encode_e4m3_fnuz(x):
    """FNUZ codes of x clamped to +-224; every zero is 0x00. Shapes: any f32 -> u8."""
    code = _small_float(x, 3, 120, 0x43600000, 0x80)
    return tl.where(code == 0x80, 0, code).to(tl.uint8)


@triton.jit
def encode_e2m1(x):
    """e2m1 codes 0..15 of x clamped to +-6, bit 3 the sign also of zero. Shapes: any f32 -> i32.

    The spacing is 1/2 below 2, 1 below 4, then 2. Adding 1.5 * 2^22 rounds to halves, in the low bits of the
    sum, and so on: of the three codes that this gives, the right one is the smallest.
    """
    magnitude = tl.abs(x)
    halves = bits_of(magnitude + 6291456.0)  # 0x4AC00000 + code, and the others with what brings them there
    ones = bits_of(magnitude + 12582912.0) + (0x4AC00000 - 0x4B400000 + 2)
    twos = bits_of(magnitude + 25165824.0) + (0x4AC00000 - 0x4BC00000 + 4)
    code = tl.minimum(tl.minimum(halves, ones), tl.minimum(twos, 0x4AC00007)) & 7
    return code | ((bits_of(x) >> 28) & 8)


@triton.jit
def decode_e4m3(code, HARDWARE: tl.constexpr = False):
    """Values of e4m3fn codes; 0x7f and 0xff are NaN. Shapes: any u8 -> f32.

    Without hardware the code moves into f32's fields; below 8 it counts steps of 2^-9. No subnormal f32
    appears on the way, which a device might flush.
    """
    if HARDWARE:
        return code.to(tl.float8e4nv, bitcast=True).to(tl.float32)
    else:
        c = code.to(tl.int32)
        low = c & 0x7F
        normal = float_of((low << 20) + (120 << 23))
        value = tl.where(low < 8, low.to(tl.float32) * 0.001953125, normal)
        bits = tl.where(low == 0x7F, 0x7FC00000, bits_of(value))
        return float_of(bits | ((c & 0x80) << 24))


@triton.jit
def decode_e4m3_fnuz(code):
    """Values of FNUZ codes: half of the OCP reading; 0x7f is 240 and 0x80 NaN. Shapes: any u8 -> f32."""
    c = code.to(tl.int32)
    low = c & 0x7F
    normal = float_of((low << 20) + (119 << 23))
    value = tl.where(low < 8, low.to(tl.float32) * 0.0009765625, normal)
    bits = bits_of(value) | ((c & 0x80) << 24)
    return float_of(tl.where(c == 0x80, 0x7FC00000, bits))


@triton.jit
def decode_e2m1(code):
    """Values of codes 0..15. Shapes: any i32 -> f32."""
    low = code & 7
    normal = float_of((low << 22) + (126 << 23))  # 2 is 1.0: exponent field 127, fraction 0
    value = tl.where(low == 0, 0.0, tl.where(low == 1, 0.5, normal))
    return float_of(bits_of(value) | ((code & 8) << 28))


@triton.jit
def exponent_e4m3(amax):
    """Smallest E with amax <= 448 * 2^E, for a positive normal amax. Shapes: any f32 -> i32."""
    bits = bits_of(amax)
    return (bits >> 23) - 135 + ((bits & 0x7FFFFF) > 0x600000).to(tl.int32)


@triton.jit
def exponent_e2m1(amax):
    """Smallest E with amax <= 6 * 2^E, for a positive normal amax. Shapes: any f32 -> i32."""
    bits = bits_of(amax)
    return (bits >> 23) - 129 + ((bits & 0x7FFFFF) > 0x400000).to(tl.int32)


@triton.jit
def scale_byte(exponent):
    """The UE8M0 byte clamp(E + 127, 1, 254), as i32."""
    return tl.minimum(tl.maximum(exponent + 127, 1), 254)


@triton.jit
def byte_scale(byte):
    """2^E of a UE8M0 byte; 0 and 255, which nobody writes, read as 1 and 254. Shapes: any u8 -> f32."""
    return float_of(tl.minimum(tl.maximum(byte.to(tl.int32), 1), 254) << 23)


@triton.jit
def exp_nonpositive(x):
    """exp(x) for x <= 0 (CA1 rule 2): Cephes' polynomial, one rounding a step; below -87 exactly 0."""
    z = tl.maximum(x, -87.0)
    k = tl.floor(z * 1.44269504 + 0.5)
    t = tl.fma(k, -0.693359375, z)  # k has 7 bits and the constant 9: their product is exact
    t = t - k * -2.12194440e-4
    p = t * 1.9875691500e-4 + 1.3981999507e-3
    p = p * t + 8.3334519073e-3
    p = p * t + 4.1665795894e-2
    p = p * t + 1.6666665459e-1
    p = p * t + 5.0000001201e-1
    y = p * (t * t)
    y = y + t
    y = y + 1.0
    y = y * power_of_two(k.to(tl.int32))
    return tl.where(x < -87.0, 0.0, y)


@triton.jit
def inverse_rms(y, n: tl.constexpr, eps):
    """1 / sqrt(mean(y^2) + eps) of every row (CA1 rule 3), the same for every order of summation.

    Shapes: y f32 [R, BLOCK] with zeros behind n values -> f32 [R].
    """
    amax = tl.max(tl.abs(y), 1)
    field = tl.maximum(bits_of(amax) >> 23, 30)
    z = y * power_of_two(147 - field)[:, None]
    # z + 1.5 * 2^23 has the integer nearest to z in its low bits: no conversion, ties to even.
    grid = (bits_of(z + 12582912.0) - 0x4B400000).to(tl.int64)
    total = tl.sum(grid * grid, 1).to(tl.float32)
    back = power_of_two(field - 147)
    square = (total * back) * back
    if n & (n - 1) == 0:
        mean = square * (1.0 / n)  # exact, as the division is
    else:
        mean = tl.div_rn(square, n * 1.0 + tl.zeros_like(total))
    return tl.div_rn(tl.full(mean.shape, 1.0, tl.float32), tl.sqrt_rn(mean + eps))


@triton.jit
def rotate(x, cos, sin, INVERSE: tl.constexpr, WIDTH: tl.constexpr):
    """Turn pairs (2i, 2i+1) (CA1 rule 5). Shapes: x f32 [R, WIDTH], cos and sin f32 [R or 1, WIDTH / 2]."""
    even, odd = tl.split(tl.reshape(x, (x.shape[0], WIDTH // 2, 2)))
    if INVERSE:
        first = even * cos + odd * sin
        second = odd * cos - even * sin
    else:
        first = even * cos - odd * sin
        second = even * sin + odd * cos
    return tl.reshape(tl.join(first, second), (x.shape[0], WIDTH))


@triton.jit
def side_by_side(low, high):
    """Rows from their two halves. Shapes: [R, N] twice -> [R, 2 N]."""
    return tl.reshape(tl.permute(tl.join(low, high), (0, 2, 1)), (low.shape[0], 2 * low.shape[1]))


@triton.jit
def hadamard128(x):
    """Hadamard-128 of rows (CA1 rule 10), rounded to bf16. Shapes: f32 [R, 128] -> f32 [R, 128].

    A thread that loaded two runs of 8 channels, with 7 others beside it, does the strides 1, 2, 4 and 64
    alone. For 8, 16 and 32 it needs its neighbour's value: the sum of both as integers, less its own.
    """
    R: tl.constexpr = x.shape[0]
    y = tl.reshape(x, (R, 16, 2, 2, 2))
    for _ in tl.static_range(3):
        a, b = tl.split(y)
        y = tl.permute(tl.join(a + b, a - b), (0, 1, 4, 2, 3))
    sign = (1 - 2 * tl.arange(0, 2))[None, :, None].to(tl.float32)
    for step in tl.static_range(3):
        y = tl.reshape(y, (R * (8 >> step), 2, 8 << step))
        other = float_of(tl.sum(bits_of(y), 1, keep_dims=True) - bits_of(y))
        y = tl.fma(y, sign + tl.zeros_like(y), other)  # a product with +-1 is exact
    a, b = tl.split(tl.permute(tl.reshape(y, (R, 2, 64)), (0, 2, 1)))
    return round_bf16(side_by_side(a + b, a - b) * 0.08838834764831845)


@triton.jit
def matrix(x):
    """An operand of `tl.dot`: bf16 on a device, `SUM` in the interpreter, whose bf16 dot is garbage."""
    if INTERPRETED:
        return x.to(SUM)
    else:
        return x.to(tl.bfloat16)


@triton.jit
def add_product(acc, x, y):
    """acc + x @ y of operands of `matrix`. Shapes: acc [M, N] in `SUM` or f32, x [M, K], y [K, N]."""
    if INTERPRETED:
        return acc + tl.dot(x, y)
    else:
        return tl.dot(x, y, acc, input_precision="ieee")


@triton.jit
def matrix_e4m3(code, HARDWARE: tl.constexpr):
    """An operand of `tl.dot` from e4m3 codes: f16 holds each of them and is one conversion away."""
    if HARDWARE:
        return code.to(tl.float8e4nv, bitcast=True).to(tl.float16)
    else:
        return matrix(decode_e4m3(code, HARDWARE))
