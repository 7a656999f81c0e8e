"""Numbers as registers have them: whole ones that wrap, floats in float32, pairs and bytes in words."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from host_device import Fault

np.seterr(all="ignore")


def wrapped(bits: int) -> type:
    """Signed integers of so many bits, whose shifts are by less than that."""
    half, mask = 1 << (bits - 1), (1 << bits) - 1

    class Whole(int):
        def __new__(cls, value: Any = 0) -> Any:
            return int.__new__(cls, ((int(value) + half) & mask) - half)

        def __neg__(self) -> Any:
            return type(self)(-int(self))

    def operator(name: str, swapped: bool) -> Any:
        plain = getattr(int, f"__{name}__")

        def apply(self: Any, other: Any) -> Any:
            a, b = (int(other), int(self)) if swapped else (int(self), int(other))
            if name in ("lshift", "rshift") and not 0 <= b < bits:
                raise Fault(f"a shift of {bits} bits by {b}")
            kind = Int64 if isinstance(other, Int64) else type(self)
            return kind(plain(a, b))

        return apply

    for name in ("add", "sub", "mul", "and", "or", "xor", "lshift", "rshift", "floordiv", "mod"):
        setattr(Whole, f"__{name}__", operator(name, False))
        setattr(Whole, f"__r{name}__", operator(name, True))
    return Whole


Int64 = wrapped(64)
Int32 = wrapped(32)


class Float32(np.float32):
    """What kernels make; results of arithmetic are numpy's own."""

    inf = np.float32(np.inf)


def kind_of(*values: Any) -> type:
    return next((type(x) for x in values if isinstance(x, (Int32, Int64))), Int32)


def bits(x: Any) -> Any:
    return Int32(np.float32(x).view(np.int32))


def from_bits(x: Any) -> Any:
    return np.int32(int(x)).view(np.float32)


def bf16(x: Any) -> int:
    word = int(bits(x)) & 0xFFFFFFFF
    return 0x7FFF if word & 0x7FFFFFFF > 0x7F800000 else (word + 0x7FFF + (word >> 16 & 1)) >> 16 & 0xFFFF


def larger(a: Any, b: Any) -> Any:
    return np.fmax(np.float32(a), np.float32(b))


def pair_mul(a: Any, b: Any) -> Any:
    low = bf16(from_bits(a << 16) * from_bits(b << 16))
    return Int32(low | bf16(from_bits(a & -65536) * from_bits(b & -65536)) << 16)


def pair_mul_f16(a: Any, b: Any) -> Any:
    x, y = (np.frombuffer(struct.pack("<i", int(v)), np.float16) for v in (a, b))
    return Int32((x * y).view(np.int32)[0])


def pair_e4m3(low: Any, high: Any) -> Any:
    """By the definition, not by steps: of the codes' magnitudes the nearest, at a tie the even one."""
    found = 0
    for shift, x in ((0, low), (8, high)):
        gaps = np.abs(E4M3 - min(abs(float(x)), 448.0))
        nearest = np.flatnonzero(gaps == gaps.min())
        code = min(nearest, key=lambda i: i % 2)
        found |= (int(code) | 128 * bool(np.signbit(x))) << shift
    return Int32(found)


E4M3 = np.array([(c % 8 + 8 * (c > 7)) * 2.0 ** (max(c // 8, 1) - 10) for c in range(127)])
"""Values of the codes 0 to 126."""


def permuted(a: Any, b: Any, order: str) -> Any:
    return looked_up(a, b, int(order, 16))


def looked_up(a: Any, b: Any, order: Any) -> Any:
    both = ((int(b) & 0xFFFFFFFF) << 32 | int(a) & 0xFFFFFFFF).to_bytes(8, "little")
    nibbles = [int(order) >> 4 * i & 15 for i in range(4)]
    return Int32(
        int.from_bytes(bytes(both[n] if n < 8 else both[n & 7] // 128 * 255 for n in nibbles), "little")
    )


def mul_clamped(a: Any, b: Any) -> Any:
    found = np.float32(a) * np.float32(b)
    return np.float32(0.0) if np.isnan(found) else np.clip(found, np.float32(0.0), np.float32(1.0))
