"""What a fold stores instead of rows and log sums: outputs turned back to position 0, as bf16 or as codes.

Channels are turned and, in f32, rounded once: to bf16, or with a scale for 128 channels to e4m3. A scale's
channels are those of a warp.
"""

import cutlass
from cutlass import Float32, Int32, Int64, cute

from dsv4core_cuda.cutedsl.kernels._fold import read_f32
from dsv4core_cuda.cutedsl.kernels._numerics import (
    across,
    choose,
    exponent_e4m3,
    power_of_two,
    rotate_back,
    scale_byte,
    widest,
)
from dsv4core_cuda.cutedsl.kernels._ptx import (
    bits,
    copy_ahead,
    load_i64,
    mul,
    pair_bf16,
    pair_e4m3,
    store_u8,
    store_words,
)

LEAST = 0x2EDBE6FF
"""The bits of 1e-10, which bounds the largest magnitude of 128 channels from below (CA1 rule 7)."""
ANGLES = 64
"""Words of a position's cosines and sines."""


@cute.jit
def bring_angles(angles, positions, cos_sin, t, thread):
    """Begin to copy token t's cosines and sines to shared memory, by a block's first threads of some."""
    if thread < ANGLES // 4:
        position = load_i64(positions + Int64(t) * 8)
        copy_ahead(angles + thread * 16, cos_sin + position * (ANGLES * 4) + thread * 16, 16)


class Turned:
    """Outputs of head `first` of all tokens' heads and of those behind it, and a scale of each 128 channels.

    FORMAT: "none" for bf16 without scales, "f32" for e4m3 and a power of two, "ue8m0x4" for e4m3 and its
    biased exponent. The angles of a thread's channels are read here.
    """

    def __init__(self, read, angles, out, scales, first, thread, FORMAT):
        self.row = 1024 if FORMAT == "none" else 512
        self.scale = 4 if FORMAT == "f32" else 1
        self.out, self.scales = out + first * self.row, scales + first * (4 * self.scale)
        self.FORMAT = FORMAT
        unit = thread % 128
        self.tail = unit >= 112
        pairs = read.pairs(unit % 16)
        self.angles = [[read_f32(angles + part + i * 4, 1)[0] for i in pairs] for part in (0, 128)]

    def stores(self, read, head, unit, x):
        """What is stored of a unit's four outputs, and where."""
        cosines, sines = self.angles
        back = rotate_back(x[0], x[1], cosines[0], sines[0]) + rotate_back(x[2], x[3], cosines[1], sines[1])
        x = [choose(Float32, self.tail, b, a) for a, b in zip(x, back, strict=True)]
        at = self.out + Int64(head) * self.row
        if self.FORMAT == "none":
            return read.stores(at, unit % 128, pair_bf16(x[0], x[1]), pair_bf16(x[2], x[3]))
        self.exponent = exponent_e4m3(cutlass.max(across(widest(x), 32, "max"), Int32(LEAST)))
        down = power_of_two(-self.exponent)
        low, high = [pair_e4m3(mul(a, down), mul(b, down)) for a, b in (x[:2], x[2:])]
        return [(at + unit % 128 * 4, [read.in_order(low, high, unit)])]

    def put_scale(self, head, unit, there):
        """Store the scale of a warp's channels, the last that `stores` has seen."""
        if self.FORMAT != "none":
            place = self.scales + Int64(head * 4 + unit % 128 // 32) * self.scale
            store_scale(place, self.exponent, there & (unit % 32 == 0), self.FORMAT)


@cute.jit
def store_scale(place, exponent, chosen, FORMAT: cutlass.Constexpr):
    """Store a scale, by the thread that is chosen."""
    if chosen:
        if cutlass.const_expr(FORMAT == "f32"):
            store_words(place, [bits(power_of_two(exponent))])
        else:
            store_u8(place, scale_byte(exponent))
