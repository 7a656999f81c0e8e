"""One layer over one sequence with every cache byte, by the canonical arithmetic.

Projections are exact sums where hidden rows and weights are small integers times powers of two, so what
reaches a cache does not depend on how a backend sums: its bytes are given to the last one. Outputs are
float64 with a bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import ca1, rows
from .indexer import Indices, select
from .options import ReferenceConfig
from .quant import F64
from .rope import F32, cos_sin, inverse_frequencies, rotate

U8 = NDArray[np.uint8]
KEPT = 128
"""Rows that a request owns of its window and of its states; older ones may or may not be in memory."""
ATTENTION, PRODUCT = 4e-3, 4e-3
"""What the contracts allow: the attention relative to its keys, each of the two output products to itself."""
SCORES = 1e-5
"""What the contract allows an index score, relative to the sum of its absolute terms."""
SUM_ERROR = 2.0**-22
"""An f32 sum of a few dozen terms, relative to the sum of their absolute values."""


def owned(length: int, tokens_per_row: int, sliding: int | None) -> tuple[int, int]:
    """First and last + 1 of the rows that a request of `length` tokens owns."""
    end = length // tokens_per_row
    return (0 if sliding is None else max(end - sliding, 0)), end


def record_parts(layout: str, width: int) -> tuple[int, int]:
    """Bytes of a row in front and behind all rows of a page; `width` is that of a state."""
    if layout == "state_f32":
        return 4 * width, 0
    record = rows.RECORDS[layout]
    return record.front, record.tail


@dataclass(frozen=True)
class PagedTrace:
    """What a sequence of S tokens must come to; E entries.

    `sure` says whether a row's selection cannot hang on the rounding of a projection. `caches` has the record
    of every row by group, sliding ones from row 0 on. `bound` is what the L2 error of an output row may be.

    Shapes: out f64 [S, hidden], bound f64 [S], sure bool [S], selection S lists of entries, visible [S],
    scores f64 [S, E] (-inf where invisible) or [S, 0], caches[group] u8 [rows, record]
    """

    out: F64
    bound: F64
    sure: NDArray[np.bool_]
    selection: list[Indices]
    visible: Indices
    scores: F64
    caches: Mapping[str, U8]

    def records(self, length: int) -> dict[str, tuple[int, U8]]:
        """Rows that a request of the first `length` tokens owns: number of the first, records, by group."""
        found: dict[str, tuple[int, U8]] = {}
        for group, whole in self.caches.items():
            sliding = group == "swa" or group.startswith("state_")
            ratio = 1 if sliding else 128 if group == "c128" else 4
            start, end = owned(length, ratio, KEPT if sliding else None)
            found[group] = start, whole[start:end]
        return found


class PagedReference:
    """A layer of ratio 0, 4 or 128 whose weights are small integers times powers of two.

    `weights` carries checkpoint names without the layer prefix and without ".weight", as float32.
    """

    def __init__(
        self,
        config: ReferenceConfig,
        ratio: int,
        weights: Mapping[str, NDArray[np.float32]],
        main_layout: str = "fp8_ds_mla",
        index_layout: str = "index_fp8",
    ) -> None:
        """Keep sizes, weights and layouts; raises KeyError when a run meets a missing weight."""
        self.config, self.ratio, self.weights = config, ratio, weights
        self.main, self.index = main_layout, index_layout
        self.act = "f32" if main_layout in rows.PLAIN else "bf16"
        theta, yarn = (config.compress_theta, config.yarn) if ratio else (config.theta, None)
        self.inv_freq: F32 = inverse_frequencies(theta, yarn, config.rope_dim)

    def run(self, hidden: NDArray[np.float32]) -> PagedTrace:
        """Everything about a sequence. Raises ValueError where a projection that is stored is not exact.

        Shapes: hidden f32 [S, hidden]
        """
        x, c = hidden.astype(np.float64), self.config
        count = len(x)
        latent, kv = (ca1.rounded(self._project(name, x), self.act) for name in ("wq_a", "wkv"))
        qr = ca1.rounded(ca1.rms_norm(latent, self.weights["q_norm"], c.eps), self.act)
        kv = ca1.rounded(ca1.rms_norm(kv, self.weights["kv_norm"], c.eps), self.act)
        window = rows.encode(self.main, ca1.rope(kv, self._table(np.arange(count))))
        caches: dict[str, U8] = {"swa": np.concatenate(window, axis=1)}
        entries = np.zeros((0, c.head_dim))
        visible = np.zeros(count, dtype=np.int64)
        if self.ratio:
            visible = (np.arange(count) + 1) // self.ratio
            group = f"c{self.ratio}"
            caches[f"state_{group}"], exact = self._entries("compressor", x)
            packed = rows.encode(self.main, ca1.rounded(exact, self.act))
            entries = rows.decode(self.main, *packed)
            caches[group] = np.concatenate(packed, axis=1)
        sure = np.ones(count, dtype=bool)
        scores = np.zeros((count, 0))
        selection = [np.arange(n) for n in visible]
        if self.ratio == 4:
            caches["state_indexer"], keys = self._entries("indexer.compressor", x)
            packed = self._encode_index(keys)
            caches["indexer"] = np.concatenate(packed, axis=1)
            scores, sure, selection = self._select(x, qr, rows.decode(self.index, *packed), visible)
        out, bound = self._attend(qr, rows.decode(self.main, *window), entries, selection)
        return PagedTrace(out, bound, sure, selection, visible, scores, caches)

    def _project(self, name: str, x: F64) -> F64:
        return x @ self.weights[name].astype(np.float64).T

    def _table(self, positions: Indices) -> F32:
        return np.concatenate(cos_sin(positions, self.inv_freq), axis=1).astype(np.float32)

    def _entries(self, prefix: str, x: F64) -> tuple[U8, F32]:
        """States of all tokens as bytes, and the entries of all complete windows before any rounding."""
        exact = [self._project(f"{prefix}.{name}", x) for name in ("wkv", "wgate")]
        kv, gate = (part.astype(np.float32) for part in exact)
        if not (np.array_equal(kv, exact[0]) and np.array_equal(gate, exact[1])):
            raise ValueError(
                f"{prefix}: projections are no exact float32 numbers: use values on a coarser grid"
            )
        r = self.ratio
        score = gate + self.weights[f"{prefix}.ape"].astype(np.float32)[np.arange(len(x)) % r]
        state = np.concatenate([kv, score], axis=1).view(np.uint8)
        norm = self.weights[f"{prefix}.norm"]
        width, count = len(norm), len(x) // r
        if not count:
            return state, np.zeros((0, width), dtype=np.float32)
        parts = [half[: count * r].reshape(count, r, -1) for half in (kv, score)]
        valid = np.ones((count, r), dtype=bool)
        if kv.shape[1] == 2 * width:  # windows overlap: the first columns of a token are for the next entry
            parts = [
                np.concatenate([np.roll(part[..., :width], 1, axis=0), part[..., width:]], axis=1)
                for part in parts
            ]
            valid = np.concatenate([np.repeat(np.arange(count)[:, None] > 0, r, axis=1), valid], axis=1)
        normed = ca1.rms_norm(ca1.pool(parts[0], parts[1], valid), norm, self.config.eps)
        return state, ca1.rope(normed, self._table(np.arange(count) * r))

    def _encode_index(self, x: F32) -> tuple[U8, U8]:
        """q or k of the indexer as its layout stores it: both go through this. Shapes: f32 [..., 128]"""
        stored = ca1.rounded(x, self.act)
        return rows.encode(self.index, ca1.hadamard(stored) if self.index in rows.ROTATED else stored)

    def _index_query(self, exact: F64) -> F64:
        """Queries of the indexer as the scores see them, from their projection. Shapes: f64 [S, h, 128]"""
        turned = ca1.rope(ca1.rounded(exact, self.act), self._table(np.arange(len(exact)))[:, None])
        return rows.decode(self.index, *self._encode_index(turned))

    def _select(
        self, x: F64, qr: F32, keys: F64, visible: Indices
    ) -> tuple[F64, NDArray[np.bool_], list[Indices]]:
        c = self.config
        weight = self.weights["indexer.wq_b"].astype(np.float64)
        exact = qr.astype(np.float64) @ weight.T
        size = np.abs(qr.astype(np.float64)) @ np.abs(weight).T
        shape = (len(x), c.index_heads, c.index_dim)
        q = self._index_query(exact.reshape(shape))
        low, high = ((exact + sign * SUM_ERROR * size).reshape(shape) for sign in (-1, 1))
        odd = np.arange(c.index_dim) % 2 == 1
        moved = np.zeros(shape)  # by how much an order of summation can move a channel, code steps included
        for even_part, odd_part in ((low, low), (low, high), (high, low), (high, high)):
            other = self._index_query(np.where(odd, odd_part, even_part))
            moved = np.maximum(moved, np.abs(other - q))
        fold = c.index_dim**-0.5 * c.index_heads**-0.5
        w = ca1.rounded(self._project("indexer.weights_proj", x), self.act).astype(np.float64) * fold
        scores, bound = np.zeros((len(x), len(keys))), np.zeros((len(x), len(keys)))
        for head in range(c.index_heads):
            scores += w[:, head, None] * np.maximum(q[:, head] @ keys.T, 0)
            bound += np.abs(w[:, head, None]) * (np.abs(q[:, head]) @ np.abs(keys).T)
        slack = (np.abs(w) * (moved @ np.abs(keys).max(axis=0, initial=0.0))).sum(axis=1)
        hidden = np.arange(len(keys))[None, :] >= visible[:, None]
        scores = np.where(hidden, -np.inf, scores)
        selection = [select(row, int(n), c.index_topk) for row, n in zip(scores, visible, strict=True)]
        sure = np.ones(len(x), dtype=bool)
        for i, chosen in enumerate(selection):
            left = np.setdiff1d(np.arange(visible[i]), chosen)
            if len(left):
                margin = scores[i, chosen].min() - scores[i, left].max()
                sure[i] = margin > 2 * (SCORES * bound[i, : visible[i]].max() + slack[i])
        return scores, sure, selection

    def _attend(self, qr: F32, window: F64, entries: F64, selection: list[Indices]) -> tuple[F64, F64]:
        """Outputs, and the L2 error that the contracts of attention and of the two products add up to."""
        c, count = self.config, len(qr)
        q = ca1.rounded(qr.astype(np.float64) @ self.weights["wq_b"].astype(np.float64).T, self.act)
        q = ca1.rms_norm(q.reshape(count, c.heads, c.head_dim), None, c.eps)
        q = ca1.rounded(ca1.rope(q, self._table(np.arange(count))[:, None]), self.act).astype(np.float64)
        sink = self.weights["attn_sink"].astype(np.float64)
        o, size = np.zeros_like(q), np.zeros((count, c.heads))
        for p in range(count):
            keys = np.concatenate([window[max(0, p + 1 - c.window) : p + 1], entries[selection[p]]])
            logits = (q[p] @ keys.T) * c.head_dim**-0.5
            top = np.maximum(logits.max(axis=1), sink)
            weight = np.exp(logits - top[:, None])
            weight /= (weight.sum(axis=1) + np.exp(sink - top))[:, None]
            o[p], size[p] = weight @ keys, np.linalg.norm(weight @ np.abs(keys), axis=1)
        turned = rotate(o, np.arange(count), self.inv_freq, inverse=True).reshape(count, c.o_groups, -1)
        wo_a = self.weights["wo_a"].astype(np.float64).reshape(c.o_groups, c.o_lora_rank, -1)
        out = self._project("wo_b", np.einsum("tgd,gnd->tgn", turned, wo_a).reshape(count, -1))
        spread = np.linalg.norm(size, axis=1) / np.linalg.norm(o, axis=(1, 2))
        return out, np.linalg.norm(out, axis=1) * (ATTENTION * spread + 2 * PRODUCT)
