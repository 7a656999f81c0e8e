"""Codes of 8 bits in registers of 32, to and from bf16 pairs."""

from cutlass import Float32, Int32
from cutlass.cutlass_dsl import T, dsl_user_op

from dsv4core_cuda.cutedsl.kernels._ptx import _asm

TWO_120 = 0x7B807B80
"""2^120 in bf16, twice."""


@dsl_user_op
def bf16_pair_times(a, b, *, loc=None, ip=None):
    """Products of two pairs of bf16, each rounded once."""
    text = "mul.rn.bf16x2 $0, $1, $2;"
    return Int32(_asm(T.i32(), [Int32(a), Int32(b)], text, "=r,r,r", loc, ip))


@dsl_user_op
def _spread(w, pick, *, loc=None, ip=None):
    return Int32(_asm(T.i32(), [Int32(w)], f"prmt.b32 $0, $1, 0, {pick};", "=r,r", loc, ip))


def decode_four(w, scale):
    """Four e4m3 codes times a pair of equal bf16 powers of two, as two pairs of bf16.

    A code's exponent and mantissa, moved behind a bf16 sign, are the value times 2^-120, also for subnormals.
    """
    pairs = []
    for pick in (0x1404, 0x3424):
        x = _spread(w, pick)
        x = (x & Int32(-0x7FFF8000)) | ((x >> 4) & 0x07F007F0)
        pairs.append(bf16_pair_times(bf16_pair_times(x, Int32(TWO_120)), scale))
    return pairs


@dsl_user_op
def pack_bf16(low, high, *, loc=None, ip=None):
    """Two f32 as a pair of bf16, rounded to nearest even."""
    text = "cvt.rn.bf16x2.f32 $0, $2, $1;"
    return Int32(_asm(T.i32(), [Float32(low), Float32(high)], text, "=r,f,f", loc, ip))
