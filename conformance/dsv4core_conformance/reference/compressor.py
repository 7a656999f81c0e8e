"""Compressed entries: gated pooling of windows of tokens, a norm, RoPE at the window's first token."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .options import Options
from .quant import F64, hadamard, through_e4m3, through_e4m3_plain_scale, through_mxfp4, to_bf16
from .rope import F32, rotate


def rms_norm(x: F64, weight: F64 | None, eps: float) -> F64:
    """x divided by its root mean square, times the weight when there is one.

    Shapes: [..., d], [d] -> [..., d]
    """
    normed = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + eps)
    return normed if weight is None else normed * weight


def pool(kv: F64, score: F64, ratio: int, dim: int) -> F64:
    """Per-channel softmax pooling of every complete window.

    With twice as many columns as `dim` the windows overlap: the first half of the columns is a token's
    contribution to the *next* entry, the second half to its own. Before the first window there is nothing:
    score -inf, so weight 0.

    Shapes: kv, score (ape added) [S, c * dim] -> [S // ratio, dim]
    """
    count = len(kv) // ratio
    values = kv[: count * ratio].reshape(count, ratio, kv.shape[1])
    scores = score[: count * ratio].reshape(count, ratio, kv.shape[1])
    if kv.shape[1] == 2 * dim:
        values, scores = (
            np.concatenate(
                [
                    np.concatenate([np.full((1, ratio, dim), fill), part[:, :, :dim]])[:count],
                    part[:, :, dim:],
                ],
                axis=1,
            )
            for part, fill in ((values, 0.0), (scores, -np.inf))
        )
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return (weights * values).sum(axis=1) / weights.sum(axis=1)


def compress(kv: F64, score: F64, norm: F64, ratio: int, inv_freq: F32, eps: float, options: Options) -> F64:
    """Entries after pooling, norm and RoPE, before any quantisation.

    Shapes: kv, score (ape added) [S, c * d], norm [d] -> [S // ratio, d]
    """
    stepwise = to_bf16 if options.compress_rounding == "per_op" else np.asarray
    pooled = stepwise(pool(kv, score, ratio, len(norm)))
    normed = stepwise(rms_norm(pooled, norm, eps))
    starts: NDArray[np.int64] = np.arange(len(pooled), dtype=np.int64) * ratio
    entries = rotate(normed, starts, inv_freq)
    return entries if options.compress_rounding == "none" else to_bf16(entries)


def store_main(rows: F64, rope_dim: int, options: Options) -> F64:
    """What a reader finds after a row of 512 was written to the main cache.

    Shapes: [n, d] -> [n, d]
    """
    if options.kv_quant == "none":
        return rows
    rounded = to_bf16(rows)
    return np.concatenate([through_e4m3(rounded[:, :-rope_dim], 64), rounded[:, -rope_dim:]], axis=1)


def store_index(rows: F64, options: Options) -> F64:
    """What the indexer's q or k is after rotation and quantisation; both go through this one function.

    Shapes: [..., 128] -> [..., 128]
    """
    if options.idx_hadamard == "both":
        rows = hadamard(rows) if options.idx_quant == "none" else to_bf16(hadamard(to_bf16(rows)))
    if options.idx_quant == "none":
        return rows
    rounded = to_bf16(rows)
    if options.idx_quant == "mxfp4_b32":
        return through_mxfp4(rounded)
    quantise = through_e4m3 if options.idx_quant == "fp8_pow2_b128" else through_e4m3_plain_scale
    return quantise(rounded, rows.shape[-1])
