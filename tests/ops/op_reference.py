"""Naive numpy statements of the canonical arithmetic and the page bytes; imports nothing of dsv4core."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch

F32 = np.float32
POISON = 0xA5
MAIN = ("fp8_ds_mla", "bf16_row", "f32_row", "fp8_ds_mla_fnuz", "fp8_row")
INDEX = (
    "index_fp8",
    "index_fp8_ue8m0x4",
    "index_fp8_hadamard_f32",
    "index_mxfp4",
    "index_mxfp4_hadamard",
    "index_f32",
)


def array(x: torch.Tensor) -> np.ndarray:
    """A tensor as numpy; bf16 as the float32 of the same value, one-byte floats as their bytes."""
    if x.dtype == torch.bfloat16:
        return x.float().numpy()
    return x.contiguous().view(torch.uint8).numpy() if x.dtype == torch.float8_e4m3fn else x.numpy()


def bf16(x: np.ndarray) -> np.ndarray:
    """Nearest bf16, ties to even, by integers."""
    bits = np.ascontiguousarray(x, F32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(F32)


def tensor_bf16(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(bf16(x)).to(torch.bfloat16)


def bits(x: torch.Tensor | np.ndarray) -> np.ndarray:
    """Bytes, so that -0 and +0 differ and NaN equals itself."""
    if isinstance(x, torch.Tensor):
        return x.contiguous().view(torch.uint8).numpy()
    return np.ascontiguousarray(x).view(np.uint8)


def same(got: torch.Tensor, expected: np.ndarray) -> None:
    """Bit for bit, a bf16 tensor against the float32 values that it must hold."""
    if got.dtype == torch.bfloat16:
        got = got.float()
    assert tuple(got.shape) == expected.shape
    a, b = bits(got), bits(expected)
    wrong = int((a != b).sum())
    assert wrong == 0, f"{wrong} of {a.size} bytes differ"


SUBNORMAL_E4M3 = [k * 2.0**-9 for k in range(8)]
NORMAL_E4M3 = [(8 + m) * 2.0 ** (e - 10) for e in range(1, 16) for m in range(8)]
MAGNITUDES_E4M3 = np.array([*SUBNORMAL_E4M3, *NORMAL_E4M3[:-1]])  # the last code is NaN
MAGNITUDES_E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def nearest_code(x: np.ndarray, magnitudes: np.ndarray, sign: int) -> np.ndarray:
    """Code of the nearest magnitude, a tie to the even code, saturating, the sign of zero kept."""
    a = np.minimum(np.abs(x.astype(np.float64)), magnitudes[-1])
    low = np.minimum(np.searchsorted(magnitudes, a, side="right") - 1, len(magnitudes) - 2)
    down, up = a - magnitudes[low], magnitudes[low + 1] - a
    code = np.where((up < down) | ((up == down) & (low % 2 == 1)), low + 1, low)
    return (code | np.where(np.signbit(x), sign, 0)).astype(np.uint8)


def e4m3(x: np.ndarray) -> np.ndarray:
    return nearest_code(x, MAGNITUDES_E4M3, 0x80)


def e4m3_values(code: np.ndarray) -> np.ndarray:
    table = np.concatenate((MAGNITUDES_E4M3, [np.nan]))
    return (np.where(code & 0x80, -1.0, 1.0) * table[code & 0x7F]).astype(F32)


def e2m1(x: np.ndarray) -> np.ndarray:
    """Packed pairs, even element in the low nibble."""
    code = nearest_code(x, MAGNITUDES_E2M1, 8)
    return code[..., 0::2] | (code[..., 1::2] << 4)


def e2m1_values(packed: np.ndarray) -> np.ndarray:
    code = np.stack((packed & 15, packed >> 4), -1).reshape(*packed.shape[:-1], -1)
    return (np.where(code & 8, -1.0, 1.0) * MAGNITUDES_E2M1[code & 7]).astype(F32)


def exponent(amax: np.ndarray, floor: float, offset: int, above: float) -> np.ndarray:
    m, e = np.frexp(np.maximum(amax.astype(F32), F32(floor)))
    return e - offset + (m > above)


def fnuz(x: np.ndarray) -> np.ndarray:
    """FNUZ codes up to 224: the magnitudes are half of OCP's, and there is no negative zero."""
    code = nearest_code(x, MAGNITUDES_E4M3 / 2, 0x80)
    return np.where(code == 0x80, 0, code).astype(np.uint8)


def blocks_e4m3(x: np.ndarray, size: int, floor: float = 1e-4) -> tuple[np.ndarray, np.ndarray]:
    """Codes and exponents of blocks of `size`."""
    g = x.astype(F32).reshape(*x.shape[:-1], -1, size)
    e = exponent(np.abs(g).max(-1), floor, 9, 0.875)
    return e4m3(np.ldexp(g.astype(np.float64), -e[..., None])).reshape(x.shape), e


def plain_e4m3(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and f32 scales amax / 448 of rows, every division rounded to f32."""
    scale = np.maximum(np.abs(x).max(-1), F32(1e-4)) / F32(448)
    return e4m3(x / scale[..., None]), scale


def blocks_e2m1(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    g = x.astype(F32).reshape(*x.shape[:-1], -1, 32)
    e = exponent(np.abs(g).max(-1), 6 * 2.0**-126, 3, 0.75)
    byte = np.clip(e + 127, 1, 254)
    codes = e2m1(np.ldexp(g.astype(np.float64), 127 - byte[..., None]).reshape(x.shape))
    return codes, byte.astype(np.uint8)


def rope(x: np.ndarray, cos_sin: np.ndarray, inverse: bool = False) -> np.ndarray:
    """The last 64 channels rotated, every product and sum rounded on its own."""
    out = x.astype(F32).copy()
    c, s = cos_sin[..., :32], cos_sin[..., 32:]
    s = -s if inverse else s
    e, o = out[..., -64::2].copy(), out[..., -63::2].copy()
    out[..., -64::2] = e * c - o * s
    out[..., -63::2] = e * s + o * c
    return out


def round_f32(value: Fraction) -> np.float32:
    """Nearest float32 of a non-negative rational, ties to even."""
    if value == 0:
        return F32(0)
    shift = 24 - (value.numerator.bit_length() - value.denominator.bit_length())
    while True:
        scaled = value * Fraction(2) ** shift
        if scaled >= 2**24:
            shift -= 1
        elif scaled < 2**23:
            shift += 1
        else:
            break
    shift = min(shift, 149)  # subnormals
    return F32(math.ldexp(round(value * Fraction(2) ** shift), -shift))


def inverse_rms(y: np.ndarray, eps: float) -> np.float32:
    """1 / sqrt(mean square + eps) of one row over Python integers."""
    field = max(int(np.abs(y).max().view(np.uint32)) >> 23, 30)
    k = 20 - (field - 127)
    total = sum(round(Fraction(float(v)) * Fraction(2) ** k) ** 2 for v in y)
    mean = (round_f32(Fraction(total)) * F32(2.0**-k)) * F32(2.0**-k) / F32(len(y))
    return F32(1) / np.sqrt(mean + F32(eps))


def inverse_rms_rows(y: np.ndarray, eps: float) -> np.ndarray:
    """The same for [..., n] with int64 numpy, n <= 2048."""
    field = np.maximum(np.abs(y).max(-1).view(np.uint32).astype(np.int64) >> 23, 30)
    k = 147 - field
    i = np.rint(np.ldexp(y.astype(np.float64), k[..., None])).astype(np.int64)
    total = (i * i).sum(-1).astype(F32)
    back = np.ldexp(F32(1), -k).astype(F32)
    with np.errstate(over="ignore"):
        mean = (total * back) * back / F32(y.shape[-1])
    return (F32(1) / np.sqrt(mean + F32(eps)))[..., None]


def rms_norm(y: np.ndarray, weight: np.ndarray | None, eps: float) -> np.ndarray:
    n = y * inverse_rms_rows(y, eps)
    return n if weight is None else n * weight.astype(F32)


def exp(x: np.ndarray) -> np.ndarray:
    """Cephes' polynomial, one rounding a step."""
    z = np.maximum(x, F32(-87))
    k = np.floor(z * F32(1.44269504) + F32(0.5))
    t = z - k * F32(0.693359375)
    t = t - k * F32(-2.12194440e-4)
    p = np.full_like(t, F32(1.9875691500e-4))
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * t + F32(c)
    y = p * (t * t) + t + F32(1)
    return np.where(x < -87, F32(0), np.ldexp(y, k.astype(np.int32)).astype(F32))


def pool(kv: np.ndarray, score: np.ndarray) -> np.ndarray:
    """One entry from kv and score [w, D]; rows whose score is -inf throughout add nothing."""
    w = len(kv)
    with np.errstate(invalid="ignore"):
        e = exp(score - score.max(0))
    a, s = np.zeros((8, kv.shape[1]), F32), np.zeros((8, kv.shape[1]), F32)
    for segment in range(8):
        for j in range(segment * (w // 8), (segment + 1) * (w // 8)):
            if not np.isneginf(score[j]).all():
                s[segment] += e[j]
                a[segment] += e[j] * kv[j]
    top, mass = a[0], s[0]
    for segment in range(1, 8):
        top, mass = top + a[segment], mass + s[segment]
    return top / mass


def hadamard(x: np.ndarray) -> np.ndarray:
    """Butterflies in ascending stride over the last 128 channels, one scaling, one rounding to bf16."""
    y = x.astype(F32).copy()
    for stride in (1, 2, 4, 8, 16, 32, 64):
        for i in range(128):
            if not i & stride:
                a, b = y[..., i].copy(), y[..., i + stride].copy()
                y[..., i], y[..., i + stride] = a + b, a - b
    return bf16(y * F32(128**-0.5))


def page_bytes(layout: str, rows: int) -> int:
    row, align = {
        "fp8_ds_mla": (584, 576), "fp8_ds_mla_fnuz": (584, 576), "fp8_row": (512, 512),
        "index_fp8_ue8m0x4": (132, 576), "index_fp8_hadamard_f32": (132, 576),
        "bf16_row": (1024, 512), "f32_row": (2048, 1), "index_fp8": (132, 576),
        "index_mxfp4": (68, 576), "index_mxfp4_hadamard": (68, 576), "index_f32": (512, 1),
    }[layout]  # fmt: skip
    return -(-rows * row // align) * align


def record(layout: str, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Front bytes and tail bytes of one row of fp32 values."""
    none = np.zeros(0, np.uint8)
    if layout in ("f32_row", "index_f32"):
        return bits(v.astype(F32)), none
    if layout == "fp8_row":
        return e4m3(v), none
    v = bf16(v)
    if layout == "bf16_row":
        return bits((v.view(np.uint32) >> 16).astype(np.uint16)), none
    if layout == "fp8_ds_mla":
        codes, e = blocks_e4m3(v[:448], 64)
        rotated = bits((v[448:].view(np.uint32) >> 16).astype(np.uint16))
        return np.concatenate((codes, rotated)), np.append((e + 127).astype(np.uint8), np.uint8(0))
    if layout == "fp8_ds_mla_fnuz":
        front, tail = record("fp8_ds_mla", v)
        e = tail[:7].astype(int) + 1 - 127
        nope = fnuz(np.ldexp(v[:448].reshape(7, 64).astype(np.float64), -e[:, None]).reshape(448))
        return np.concatenate((nope, front[448:])), np.append((e + 127).astype(np.uint8), np.uint8(0))
    if layout == "index_fp8_hadamard_f32":
        codes, scale = plain_e4m3(v)
        return codes, bits(scale.reshape(1))
    if layout == "index_fp8_ue8m0x4":
        codes, e = blocks_e4m3(v, 128)
        return codes, np.full(4, e[0] + 127, np.uint8)
    if layout == "index_fp8":
        codes, e = blocks_e4m3(v, 128)
        return codes, bits(np.ldexp(F32(1), e[0]).astype(F32).reshape(1))
    return blocks_e2m1(v)


def values(layout: str, front: np.ndarray, tail: np.ndarray) -> np.ndarray:
    """The fp32 values a record stands for."""
    if layout in ("f32_row", "index_f32"):
        return front.copy().view(F32)
    if layout == "bf16_row":
        return (front.copy().view(np.uint16).astype(np.uint32) << 16).view(F32)
    if layout == "fp8_row":
        return e4m3_values(front)
    if layout.startswith("fp8_ds_mla"):
        scale = np.ldexp(F32(1), tail[:7].astype(np.int32) - 127).repeat(64)
        rotated = (front[448:].copy().view(np.uint16).astype(np.uint32) << 16).view(F32)
        with np.errstate(over="ignore"):
            nope = e4m3_values(front[:448]) / (2 if layout.endswith("fnuz") else 1)
            return np.concatenate((nope * scale, rotated)).astype(F32)
    if layout == "index_fp8_ue8m0x4":
        return e4m3_values(front) * np.ldexp(F32(1), int(tail[0]) - 127).astype(F32)
    if layout in ("index_fp8", "index_fp8_hadamard_f32"):
        return e4m3_values(front) * tail.copy().view(F32)[0]
    return e2m1_values(front) * np.ldexp(F32(1), tail.astype(np.int32) - 127).repeat(32).astype(F32)


class Pages:
    """Byte pages inside a larger poisoned allocation: `lead` bytes before them, `gap` bytes behind each."""

    def __init__(self, layout: str, count: int, rows: int, *, lead: int = 0, gap: int = 0) -> None:
        self.layout, self.rows, self.size = layout, rows, page_bytes(layout, rows)
        self.lead, self.stride = lead, self.size + gap
        self.store = torch.full((lead + count * self.stride,), POISON, dtype=torch.uint8)
        self.tensor = self.store.as_strided((count, self.size), (self.stride, 1), lead)
        self.expected = self.store.numpy().copy()

    def spans(self, slot: int) -> tuple[slice, slice]:
        """Where a row's front and tail lie in the allocation."""
        front, tail = (
            len(part) for part in record(self.layout, np.zeros(512 if self.layout in MAIN else 128, F32))
        )
        page = self.lead + slot // self.rows * self.stride
        start, behind = page + slot % self.rows * front, page + self.rows * front + slot % self.rows * tail
        return slice(start, start + front), slice(behind, behind + tail)

    def put(self, slot: int, v: np.ndarray) -> None:
        """Write a row into the expected image."""
        for span, part in zip(self.spans(slot), record(self.layout, v), strict=True):
            self.expected[span] = part

    def fill(self, slot: int, v: np.ndarray) -> None:
        """Write a row into the tensor and the image."""
        self.put(slot, v)
        for span in self.spans(slot):
            self.store.numpy()[span] = self.expected[span]

    def get(self, slot: int) -> np.ndarray:
        """Values of a row of the tensor."""
        front, tail = self.spans(slot)
        data = self.store.numpy()
        return values(self.layout, data[front], data[tail])

    def check(self) -> None:
        """Every byte of the allocation, also those nobody may touch."""
        wrong = np.flatnonzero(self.store.numpy() != self.expected)
        assert wrong.size == 0, f"{wrong.size} bytes differ, the first at {wrong[:4].tolist()}"


def angles(count: int, seed: int = 7) -> np.ndarray:
    """A cos_sin table [count, 64] of arbitrary angles."""
    a = np.random.default_rng(seed).uniform(-7, 7, (count, 32))
    return np.concatenate((np.cos(a), np.sin(a)), 1).astype(F32)


def attention(q: np.ndarray, keys: np.ndarray, sink: np.ndarray, scale: float) -> tuple[np.ndarray, ...]:
    """float64 output, lse and the scale of the bound for one token: q [H, 512], keys [n, 512], sink [H]."""
    heads = q.shape[0]
    if len(keys) == 0:
        return np.zeros((heads, 512)), np.full(heads, np.inf), np.zeros(heads)
    k = keys.astype(np.float64)
    s = scale * (q.astype(np.float64) @ k.T)
    peak = s.max(1)
    lse = peak + np.log(np.exp(s - peak[:, None]).sum(1))
    with np.errstate(over="ignore"):
        share = 1 / (1 + np.exp(sink.astype(np.float64) - lse))
    p = np.exp(s - lse[:, None]) * share[:, None]
    return p @ k, lse, np.linalg.norm(p @ np.abs(k), axis=1)


def check_attention(out: torch.Tensor, lse: torch.Tensor, expected: list[tuple[np.ndarray, ...]]) -> None:
    """The bounds of arithmetic.md section 2 for every (token, head)."""
    got, got_lse = array(out).astype(np.float64), lse.numpy().astype(np.float64)
    for t, (o, e, size) in enumerate(expected):
        empty = np.isposinf(e)
        assert (got[t][empty] == 0).all() and np.isposinf(got_lse[t][empty]).all()
        assert (np.linalg.norm(got[t] - o, axis=1) <= 4e-3 * size).all()
        assert (np.abs(got_lse[t][~empty] - e[~empty]) <= 1e-5 + 1e-6 * np.abs(e[~empty])).all()
