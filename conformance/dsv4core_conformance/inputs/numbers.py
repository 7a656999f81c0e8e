"""Numbers of inputs: hashed, the same on every machine and torch version, with corners where codes step."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsv4core_conformance.reference.ca1 import bf16
from dsv4core_conformance.reference.counter import hashed_values, hashed_words
from dsv4core_conformance.reference.options import Yarn
from dsv4core_conformance.reference.rope import cos_sin as reference_tables
from dsv4core_conformance.reference.rope import inverse_frequencies

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Kind = Literal["normal", "spread", "corners"]

CORNERS = np.array(
    [
        0.0, -0.0, 448.0, 449.0, 6.0, 6.03125, 2.0**-9, 2.0**-10, 3 * 2.0**-11, -(2.0**-10), 1e-4,
        1.0 + 2.0**-8, 1.0 + 3 * 2.0**-8, 1e-40, 2.0**100, -(2.0**-133),
    ],
    dtype=np.float32,
)  # fmt: skip
E4M3_TIES = np.array([448, 0.25, -0.75, 17, -19, 2.5, 232, -248], dtype=np.float32)
E2M1_TIES = np.array([6, 0.25, -0.25, 0.75, 1.25, -1.75, 2.5, 3.5, -5, 5.03125], dtype=np.float32)


class Numbers:
    """A source of hashed numbers: every draw is a stream of its own."""

    def __init__(self, seed: int = 1) -> None:
        self._stream = seed * 256

    def _next(self) -> int:
        self._stream += 1
        return self._stream

    def normal(self, *shape: int) -> F32:
        """About normal, deviation 1.15. Shapes: -> f32 [shape]"""
        return hashed_values(shape, self._next())

    def spread(self, *shape: int, low: int = -30, high: int = 33) -> F32:
        """The same, every 32 neighbours times a power of two, 2^low .. 2^high. Shapes: -> f32 [shape]"""
        plain = self.normal(*shape)
        groups = -(-shape[-1] // 32)
        powers = self.integers(plain.size // shape[-1] * groups, low, high + 1).reshape(*shape[:-1], groups)
        return np.ldexp(plain, np.repeat(powers, 32, axis=-1)[..., : shape[-1]]).astype(np.float32)

    def of(self, kind: Kind, *shape: int) -> F32:
        """Numbers: normal, spread over magnitudes, or rows of corner cases. Shapes: -> f32 [shape]"""
        if kind == "corners":
            plain = self.normal(*shape)
            return corner_rows(plain.reshape(-1, shape[-1])).reshape(shape)
        return self.spread(*shape) if kind == "spread" else self.normal(*shape)

    def integers(self, count: int, low: int, high: int) -> I64:
        """Integers in [low, high). Shapes: -> i64 [count]"""
        return (hashed_words(count, self._next()) % np.uint64(high - low)).astype(np.int64) + low

    def permutation(self, count: int) -> I64:
        """The numbers 0 .. count - 1 in a hashed order. Shapes: -> i64 [count]"""
        return np.argsort(hashed_words(count, self._next()), kind="stable").astype(np.int64)


def corner_rows(plain: F32) -> F32:
    """Rows in turn of signed zeros, single corners, e4m3 ties, subnormals, e2m1 ties and the given numbers.

    Shapes: f32 [rows, width] -> f32 [rows, width]
    """
    out = plain.copy()
    width = plain.shape[1]
    for row in range(len(plain)):
        kind = row % 6
        if kind == 0:
            out[row] = np.where(np.arange(width) % 3 == 0, np.float32(-0.0), np.float32(0.0))
        elif kind == 1:
            out[row, ::32] = np.resize(CORNERS, len(out[row, ::32]))
        elif kind == 2:  # block maxima exactly where the exponent steps, values on ties of the grid
            out[row] = np.resize(E4M3_TIES, width)
        elif kind == 3:
            out[row] = np.ldexp(plain[row], -140)
        elif kind == 4:
            out[row] = np.resize(E2M1_TIES, width)
    return out


def tensor(values: NDArray[np.floating], dtype: str = "f32") -> Tensor:
    """A host tensor of its own, "bf16" (rounded to nearest even) or "f32". Shapes: any -> the same"""
    if dtype == "bf16":
        return torch.from_numpy(bf16(values)).to(torch.bfloat16)
    return torch.from_numpy(np.array(values, dtype=np.float32))


def integers(values: object, dtype: torch.dtype = torch.int64) -> Tensor:
    """A host tensor of integers of its own. Shapes: any -> the same"""
    return torch.from_numpy(np.array(values, dtype=np.int64)).to(dtype)


@lru_cache(maxsize=4)
def frequencies(kind: str) -> F32:
    """Frequencies of "main" (window-only layers) or "compress" (layers with entries). Shapes: -> f32 [32]"""
    return inverse_frequencies(1e4, None) if kind == "main" else inverse_frequencies(1.6e5, Yarn())


def table_rows(kind: str, positions: NDArray[np.integer]) -> F32:
    """Rows of a table: 32 cosines, then 32 sines. Shapes: [n] -> f32 [n, 64]"""
    cos, sin = reference_tables(np.asarray(positions), frequencies(kind))
    return np.concatenate((cos, sin), axis=1).astype(np.float32)


@lru_cache(maxsize=8)
def _table(kind: str, count: int) -> F32:
    return table_rows(kind, np.arange(count))


def cos_sin(kind: str, count: int) -> Tensor:
    """The first `count` rows of the "main" or the "compress" table. Shapes: -> f32 [count, 64]"""
    return tensor(_table(kind, -(-count // 256) * 256)[:count])
