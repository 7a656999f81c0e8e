"""Positions, tables and steps of tokens, for makers of arguments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from dsv4core_conformance.inputs.numbers import Numbers, cos_sin
from dsv4core_conformance.reference.rows import PLAIN

EPS = 1e-6


def activations_beside(layout: str) -> str:
    """What activations are beside a layout: "f32" beside the unrounded ones, else "bf16"."""
    return "f32" if layout in PLAIN else "bf16"


def positions_of(source: Numbers, positions: Sequence[int] | int | None, tokens: int) -> np.ndarray:
    """Given positions, or hashed ones below a limit (300). Shapes: -> i64 [tokens]"""
    if positions is None or isinstance(positions, int):
        return source.integers(tokens, 0, positions or 300)
    return np.asarray(positions, dtype=np.int64)


def table_up_to(table: str, positions: np.ndarray) -> Tensor:
    """The table of a kind with a row for every position. Shapes: i64 [T] -> f32 [rows, 64]"""
    return cos_sin(table, int(positions.max(initial=0)) + 1)


def step_tokens(lengths: Sequence[int], starts: Sequence[int] | None) -> tuple[np.ndarray, np.ndarray]:
    """Positions and requests of the tokens of a step. Shapes: -> i64 [T], i64 [T]"""
    first = starts or [0] * len(lengths)
    parts = [np.arange(start, length) for start, length in zip(first, lengths, strict=True)]
    request = [np.full(len(part), b) for b, part in enumerate(parts)]
    nothing = [np.zeros(0, np.int64)]
    return np.concatenate(parts or nothing), np.concatenate(request or nothing)
