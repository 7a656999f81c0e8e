"""Numpy statements that the op tests judge by; the arithmetic is the conformance suite's own reference."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch

from dsv4core_conformance.reference import ca1, rows
from dsv4core_conformance.reference.ca1 import bf16, blocks_e4m3, hadamard, rms_norm, rope
from dsv4core_conformance.reference.rows import page_bytes, places, read, write

__all__ = ["bf16", "blocks_e4m3", "hadamard", "rms_norm", "rope"]

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


def pool(kv: np.ndarray, score: np.ndarray) -> np.ndarray:
    """One entry from kv and score [w, D]; rows whose score is -inf throughout add nothing."""
    return ca1.pool(kv[None], score[None], ~np.isneginf(score).all(axis=1)[None])[0]


def e4m3_values(code: np.ndarray) -> np.ndarray:
    return rows.E4M3[code].astype(F32)


def e2m1_values(packed: np.ndarray) -> np.ndarray:
    nibbles = np.stack((packed & 15, packed >> 4), -1).reshape(*packed.shape[:-1], -1)
    return rows.E2M1[nibbles].astype(F32)


def plain_e4m3(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and f32 scales amax / 448 of rows of 128 bf16 values."""
    codes, scale = rows.encode("index_fp8_hadamard_f32", x)
    return codes, scale.view(F32)[..., 0]


def blocks_e2m1(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Packed pairs and scale bytes of rows of 128 bf16 values."""
    return rows.encode("index_mxfp4", x)


class Pages:
    """Byte pages inside a larger poisoned allocation: `lead` bytes before them, `gap` bytes behind each."""

    def __init__(self, layout: str, count: int, rows: int, *, lead: int = 0, gap: int = 0) -> None:
        self.layout, self.rows, self.size = layout, rows, page_bytes(layout, rows)
        self.lead, self.stride = lead, self.size + gap
        self.store = torch.full((lead + count * self.stride,), POISON, dtype=torch.uint8)
        self.tensor = self.store.as_strided((count, self.size), (self.stride, 1), lead)
        self.expected = self.store.numpy().copy()
        self._image = torch.from_numpy(self.expected).as_strided((count, self.size), (self.stride, 1), lead)

    def spans(self, slot: int) -> tuple[slice, slice]:
        """Where a row's front and tail lie in the allocation."""
        _, front, tail = places(self.layout, np.array(slot), self.rows)
        start = self.lead + slot // self.rows * self.stride
        first, behind = start + int(front[0]), start + int(tail[0]) if len(tail) else 0
        return slice(first, first + len(front)), slice(behind, behind + len(tail))

    def put(self, slot: int, v: np.ndarray) -> None:
        """Write a row into the expected image."""
        write(self.layout, self._image.numpy(), np.array([slot]), self.rows, v[None])

    def fill(self, slot: int, v: np.ndarray) -> None:
        """Write a row into the tensor and the image."""
        self.put(slot, v)
        write(self.layout, self.tensor.numpy(), np.array([slot]), self.rows, v[None])

    def get(self, slot: int) -> np.ndarray:
        """Values of a row of the tensor."""
        with np.errstate(over="ignore"):
            return read(self.layout, self.tensor.numpy(), np.array(slot), self.rows).astype(F32)

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
    """The bounds of attention (docs/arithmetic.md) for every (token, head)."""
    got, got_lse = array(out).astype(np.float64), lse.numpy().astype(np.float64)
    for t, (o, e, size) in enumerate(expected):
        empty = np.isposinf(e)
        assert (got[t][empty] == 0).all() and np.isposinf(got_lse[t][empty]).all()
        assert (np.linalg.norm(got[t] - o, axis=1) <= 4e-3 * size).all()
        assert (np.abs(got_lse[t][~empty] - e[~empty]) <= 1e-5 + 1e-6 * np.abs(e[~empty])).all()
