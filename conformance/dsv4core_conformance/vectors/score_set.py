"""Index scores with and without rotation: keys with outlier channels, equal keys, and the lists of the best.

Two channels of every key are large, as they are in a trained indexer. In four bits they take the scale of
their block, unless the rotation spreads them; so scores and lists change when one side is rotated and the
other is not, or neither. There are sixteen different keys, each three times: a list of eleven always ends
inside a tie, which goes to the lower index.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsv4core_conformance.inputs.numbers import Numbers
from dsv4core_conformance.reference import rows as reference
from dsv4core_conformance.reference.ca1 import bf16, hadamard
from dsv4core_conformance.reference.quant import e2m1_codes, exponent_e2m1
from dsv4core_conformance.reference.rows import E2M1

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
LAYOUTS = ("index_mxfp4", "index_mxfp4_hadamard")
TOKENS, HEADS, ENTRIES, ROWS, TOP_K = 4, 8, 48, 64, 11
OUTLIERS = (3, 70)


class Scores(NamedTuple):
    """Inputs and what they must give. `context` entries are visible to each token; `lists` hold -1 behind."""

    q: F32
    weights: F32
    keys: F32
    context: NDArray[np.int32]
    page: NDArray[np.uint8]
    logits: F64
    lists: NDArray[np.int32]


def make(layout: str) -> Scores:
    """The set of a layout; q, weights and keys are the same in both. Raises KeyError for another layout."""
    source = Numbers(78)
    q, keys = source.normal(TOKENS, HEADS, 128), np.tile(source.normal(ENTRIES // 3, 128), (3, 1))
    keys[:, OUTLIERS] *= np.float32(24)
    q[..., OUTLIERS] *= np.float32(0.05)
    q, keys = bf16(q), bf16(keys)
    weights = np.abs(source.normal(TOKENS, HEADS))
    context = np.array([ENTRIES, 41, TOP_K, 5], dtype=np.int32)
    turned = hadamard(keys) if layout in reference.ROTATED else keys
    page = np.zeros((1, reference.page_bytes(layout, ROWS)), dtype=np.uint8)
    reference.write(layout, page, np.arange(ENTRIES), ROWS, turned)
    logits = exact(hadamard(q) if layout in reference.ROTATED else q, weights, reference.read(
        layout, page, np.arange(ENTRIES), ROWS
    ))  # fmt: skip
    logits[np.arange(ENTRIES) >= context[:, None]] = -np.inf
    return Scores(q, weights, keys, context, page, logits, best(logits, context))


def quantised(q: F32) -> F64:
    """Values of queries after e2m1 with a scale per 32. Shapes: [..., 128] -> f64 [..., 128]"""
    blocks = q.astype(np.float64).reshape(*q.shape[:-1], 4, 32)
    exponent = exponent_e2m1(np.abs(blocks).max(axis=-1))[..., None]
    return np.ldexp(E2M1[e2m1_codes(np.ldexp(blocks, -exponent))], exponent).reshape(q.shape)


def exact(q: F32, weights: F32, keys: F64) -> F64:
    """Scores of quantised queries against keys. Shapes: [T, H, 128], [T, H], [n, 128] -> f64 [T, n]"""
    products = np.einsum("thd,nd->thn", quantised(q), keys)
    return np.einsum("thn,th->tn", np.maximum(products, 0), weights.astype(np.float64))


def best(logits: F64, context: NDArray[np.int32]) -> NDArray[np.int32]:
    """The best entries, ascending, a tie to the lower index, -1 behind. Shapes: [T, n] -> i32 [T, k]"""
    lists = np.full((len(logits), TOP_K), -1, dtype=np.int32)
    for t, row in enumerate(logits):
        chosen = np.argsort(-row[: context[t]], kind="stable")[:TOP_K]
        lists[t, : len(chosen)] = np.sort(chosen)
    return lists
