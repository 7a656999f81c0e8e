"""Rows of the index layouts as a warp writes them, four neighbouring channels a lane."""

import cutlass
from cutlass import Float32, Int32, cute

from dsv4core_cuda.cutedsl.kernels._main_row import LEAST, settled
from dsv4core_cuda.cutedsl.kernels._numerics import (
    across,
    encode_e2m1,
    exponent_e2m1,
    exponent_e4m3,
    power_of_two,
    scale_byte,
    unpack_bf16,
    widest,
)
from dsv4core_cuda.cutedsl.kernels._ptx import (
    add,
    bits,
    div,
    fma,
    from_bits,
    mul,
    pair_bf16,
    pair_e4m3,
    store_u16,
    store_words,
    sub,
)

SMALLEST = 0x01C00000
"""The bits of 6 * 2^-126, which bounds the largest magnitude of a group of e2m1 from below."""


def hadamard(values):
    """Hadamard-128 of a warp's row (CA1 rule 10), rounded to bf16."""
    lane = cute.arch.lane_idx()
    x = [y for i in (0, 2) for y in unpack_bf16(pair_bf16(values[i], values[i + 1]))]
    x = [add(x[0], x[1]), sub(x[0], x[1]), add(x[2], x[3]), sub(x[2], x[3])]
    x = [add(x[0], x[2]), add(x[1], x[3]), sub(x[0], x[2]), sub(x[1], x[3])]
    for bit in range(5):
        sign = from_bits(Int32(0x3F800000) | ((lane & (1 << bit)) << (31 - bit)))
        x = [fma(y, sign, cute.arch.shuffle_sync_bfly(y, 1 << bit)) for y in x]  # the product is exact
    return [mul(y, 0.08838834764831845) for y in x]


@cute.jit
def store_index_row(start, behind, values, LAYOUT):
    """Round and write a row: codes at `start`, scales at `behind`."""
    lane = cute.arch.lane_idx()
    y = settled(values)
    amax = widest(y)
    if cutlass.const_expr(LAYOUT in ("index_mxfp4", "index_mxfp4_hadamard")):
        exponent = exponent_e2m1(cutlass.max(across(amax, 8, "max"), Int32(SMALLEST)))
        byte = scale_byte(exponent)
        scale = power_of_two(127 - byte)
        c = [encode_e2m1(mul(x, scale)) for x in y]
        store_u16(start + lane * 2, c[0] | (c[1] << 4) | (c[2] << 8) | (c[3] << 12))
        word = cute.arch.warp_redux_sync(byte << (lane & 24), "or")
        if lane == 0:
            store_words(behind, [word])
    else:
        amax = cutlass.max(across(amax, 32, "max"), Int32(LEAST))
        if cutlass.const_expr(LAYOUT == "index_fp8_hadamard_f32"):
            scale = div(from_bits(amax), Float32(448.0))
            y = [div(x, scale) for x in y]
        else:
            exponent = exponent_e4m3(amax)
            scale = power_of_two(exponent)
            y = [mul(x, power_of_two(-exponent)) for x in y]
        store_words(start + lane * 4, [pair_e4m3(y[0], y[1]) | (pair_e4m3(y[2], y[3]) << 16)])
        if lane == 0:
            word = bits(scale)
            if cutlass.const_expr(LAYOUT == "index_fp8_ue8m0x4"):
                word = (word >> 23) * 0x01010101
            store_words(behind, [word])
