"""Arguments of `indexer_topk`, and of scores that are hard to choose from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dsv4core_conformance.inputs.draws import Lens, i32, lengths
from dsv4core_conformance.inputs.hashed import Draws

BASE = 0x3F9D7000  # a float32 near 1.23 whose lowest bits are free


def hard_scores(kind: str, shape: tuple[int, int], rng: Draws) -> NDArray[np.float32]:
    """Scores of a kind.

    "normal", "negative"; "ties" (steps of 0.5), "equal" (all the same), "zeros" (-0 and +0); "near" (equal in
    the top 22 bits), "bin" (equal in the top 12 bits, so that a coarse histogram sees one bin),
    "negative_bin";
    "ascending",
    "descending"; "huge" (up to the largest float32 and the smallest subnormals); "infinite" (some
    -inf and +inf). Shapes: -> f32 [T, L]
    """
    normal = rng.standard_normal(shape).astype(np.float32)
    if kind == "normal":
        return normal
    if kind == "negative":
        return -np.abs(normal)
    if kind == "ties":
        return (np.round(normal * 2) / 2).astype(np.float32)
    if kind == "equal":
        return np.full(shape, -3.25, dtype=np.float32)
    if kind == "zeros":
        return np.where(rng.random(shape) < 0.5, np.float32(-0.0), np.float32(0.0))
    if kind in ("near", "bin", "negative_bin"):
        low = rng.integers(0, 1 << (10 if kind == "near" else 20), shape)
        words = (np.int64(BASE if kind == "near" else 0x3F900000) + low).astype(np.uint32).view(np.float32)
        return -words if kind == "negative_bin" else words
    if kind in ("ascending", "descending"):
        steps = np.broadcast_to(np.arange(shape[1], dtype=np.float32), shape)
        return np.array(steps if kind == "ascending" else -steps)
    exponents = rng.integers(-149, 128, shape).astype(np.float64)
    wide = (np.sign(normal) * np.exp2(exponents)).astype(np.float32)
    if kind == "infinite":
        wide[rng.random(shape) < 0.1] = np.inf
        wide[rng.random(shape) < 0.3] = -np.inf
    return wide


def make(
    *, tokens: int = 3, width: int = 130, lens: Lens = "random", k: int = 8, kind: str = "normal",
    behind: float = -np.inf, column: int = 0, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """`behind` stands in the cells behind a context, `column` cells of another tensor before every row."""
    rng = Draws(seed, "indexer_topk", kind)
    scores = hard_scores(kind, (tokens, width), rng)
    n = lengths(lens, tokens, width, rng)
    scores[np.arange(width) >= n[:, None]] = behind
    wide = torch.from_numpy(np.full((tokens, column + width), np.inf, dtype=np.float32))
    wide[:, column:] = torch.from_numpy(scores)
    return {"logits": wide[:, column:], "context_lens": i32(n), "k": k}
