"""Draws from the integer hash, named as numpy's generators name theirs, whose streams may change."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dsv4core_conformance.reference.counter import hashed_values, hashed_words

Shape = int | tuple[int, ...] | None
_DRAWS = 64  # streams that one source may open before it runs into the next one's


class Draws:
    """A source of numbers for a purpose: every call is a stream of its own."""

    def __init__(self, *purpose: object) -> None:
        self._stream = (zlib.crc32(repr(purpose).encode()) % (1 << 18)) * _DRAWS

    def standard_normal(self, shape: Shape = None) -> NDArray[np.float64]:
        """About normal with deviation 1, at most 3.5. Shapes: -> f64 [shape]"""
        return hashed_values(_tuple(shape), self._next()).astype(np.float64) / np.sqrt(4 / 3)

    def integers(self, low: int, high: int | None = None, shape: Shape = None) -> NDArray[np.int64]:
        """Whole numbers in [low, high), or in [0, low). Shapes: -> i64 [shape]"""
        first, span = (0, low) if high is None else (low, high - low)
        drawn = (self._words(shape) >> np.uint64(11)) % np.uint64(span)
        return drawn.astype(np.int64) + first

    def random(self, shape: Shape = None) -> NDArray[np.float64]:
        """Numbers in [0, 1). Shapes: -> f64 [shape]"""
        return (self._words(shape) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def uniform(self, low: float, high: float, shape: Shape = None) -> NDArray[np.float64]:
        """Numbers in [low, high). Shapes: -> f64 [shape]"""
        return low + (high - low) * self.random(shape)

    def permutation(self, count: int) -> NDArray[np.int64]:
        """0 .. count - 1 in some order. Shapes: -> i64 [count]"""
        return np.argsort(self._words(count), kind="stable").astype(np.int64)

    def permutations(self, rows: int, count: int) -> NDArray[np.int64]:
        """Rows of 0 .. count - 1, each in an order of its own. Shapes: -> i64 [rows, count]"""
        return np.argsort(self._words((rows, count)), axis=1, kind="stable").astype(np.int64)

    def choice(self, values: Sequence[int], count: int) -> NDArray[np.int64]:
        """`count` of the values. Shapes: -> i64 [count]"""
        return np.asarray(values, dtype=np.int64)[self.integers(len(values), shape=count)]

    def _words(self, shape: Shape) -> NDArray[np.uint64]:
        size = _tuple(shape)
        return hashed_words(int(np.prod(size)), self._next()).reshape(size)

    def _next(self) -> int:
        self._stream += 1
        return self._stream


def _tuple(shape: Shape) -> tuple[int, ...]:
    return () if shape is None else (shape,) if isinstance(shape, int) else tuple(shape)
