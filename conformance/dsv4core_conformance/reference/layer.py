"""One attention layer of DeepSeek-V4 in float64, for one sequence from position 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from .attention import attend
from .compressor import compress, rms_norm, store_index, store_main
from .indexer import Indices, index_scores, select
from .options import Options, ReferenceConfig
from .quant import F64, FLOOR_OUTPUT, through_e4m3, to_bf16
from .rope import F32, inverse_frequencies, rotate

Weights = Mapping[str, NDArray[np.floating]]


class Trace(TypedDict):
    """Everything a run computed; n wanted rows, S tokens, e entries, h heads.

    Shapes: positions [n], out [n, hidden], o [n, h, 512] (rotated back), attention [n, h, 512] (not yet),
    lse [n, h], q [n, h, 512], kv [S, 512] and entries [e, 512] as read from the cache, kv_exact and
    entries_exact before quantisation, visible [n] entries each row may see, selection n lists of entries;
    with an indexer index_entries [e, 128], index_q [n, hi, 128], index_weights [n, hi], index_scores
    [n, e] (-inf where invisible); state and index_state [S, 2W] = projection and score + ape.
    """

    positions: Indices
    out: F64
    o: F64
    attention: F64
    lse: F64
    q: F64
    kv: F64
    kv_exact: F64
    entries: F64
    entries_exact: F64
    visible: Indices
    selection: list[Indices]
    index_entries: F64
    index_q: F64
    index_weights: F64
    index_scores: F64
    state: F64
    index_state: F64


class ReferenceLayer:
    """A layer of ratio 0 (window only), 4 (overlapping windows and indexer) or 128.

    `weights` carries checkpoint names without the layer prefix and without ".weight"; a weight is widened
    to float64 only while it is used.
    """

    def __init__(
        self, config: ReferenceConfig, ratio: int, weights: Weights, options: Options | None = None
    ) -> None:
        """Keep the sizes and weights; raises KeyError when a run meets a missing weight."""
        self.config = config
        self.ratio = ratio
        self.weights = weights
        self.options = options or Options()
        theta, yarn = (config.compress_theta, config.yarn) if ratio else (config.theta, None)
        self.inv_freq: F32 = inverse_frequencies(theta, yarn, config.rope_dim)

    def run(
        self,
        hidden: NDArray[np.floating],
        rows: Sequence[int] | None = None,
        selection: Mapping[int, Sequence[int]] | None = None,
    ) -> Trace:
        """Outputs of the wanted positions, given the hidden states of the whole sequence.

        `selection` replaces the indexer's choice at some positions, to look at attention alone.

        Shapes: hidden [S, hidden] -> Trace
        """
        x = np.asarray(hidden, dtype=np.float64)
        wanted = np.arange(len(x)) if rows is None else np.asarray(rows, dtype=np.int64)
        kv_exact = self._window_rows(x)
        kv = store_main(kv_exact, self.config.rope_dim, self.options)
        none = np.zeros((0, self.config.head_dim))
        trace = Trace(
            positions=wanted,
            out=none,
            o=none,
            attention=none,
            lse=none,
            q=none,
            kv=kv,
            kv_exact=kv_exact,
            entries=none,
            entries_exact=none,
            visible=np.zeros(len(wanted), dtype=np.int64),
            selection=[],
            index_entries=none,
            index_q=none,
            index_weights=none,
            index_scores=none,
            state=none,
            index_state=none,
        )
        qr = self._act(
            rms_norm(self._act(self._project("wq_a", x[wanted])), self._weight("q_norm"), self.config.eps)
        )
        if self.ratio:
            trace["visible"] = (wanted + 1) // self.ratio
            trace["state"], trace["entries_exact"] = self._entries("compressor", x)
            trace["entries"] = store_main(trace["entries_exact"], self.config.rope_dim, self.options)
        if self.ratio == 4:
            self._score(trace, x, qr)
            for row, position in enumerate(wanted):
                given = None if selection is None else selection.get(int(position))
                choice = (
                    select(trace["index_scores"][row], int(trace["visible"][row]), self.config.index_topk)
                    if given is None
                    else np.asarray(given, dtype=np.int64)
                )
                trace["selection"].append(choice)
        else:
            trace["selection"] = [np.arange(count) for count in trace["visible"]]
        self._attend(trace, qr)
        trace["out"] = self._output(trace["o"])
        return trace

    def _weight(self, name: str) -> F64:
        return np.asarray(self.weights[name], dtype=np.float64)

    def _project(self, name: str, x: F64) -> F64:
        return x @ self._weight(name).T

    def _act(self, x: F64) -> F64:
        return to_bf16(x) if self.options.act_dtype == "bf16" else x

    def _window_rows(self, x: F64) -> F64:
        kv = self._act(rms_norm(self._act(self._project("wkv", x)), self._weight("kv_norm"), self.config.eps))
        return rotate(kv, np.arange(len(x)), self.inv_freq)

    def _entries(self, prefix: str, x: F64) -> tuple[F64, F64]:
        kv = self._project(f"{prefix}.wkv", x)
        ape = self._weight(f"{prefix}.ape")
        score = self._project(f"{prefix}.wgate", x) + ape[np.arange(len(x)) % self.ratio]
        entries = compress(
            kv,
            score,
            self._weight(f"{prefix}.norm"),
            self.ratio,
            self.inv_freq,
            self.config.eps,
            self.options,
        )
        return np.concatenate([kv, score], axis=1), entries

    def _score(self, trace: Trace, x: F64, qr: F64) -> None:
        config, wanted = self.config, trace["positions"]
        trace["index_state"], exact = self._entries("indexer.compressor", x)
        trace["index_entries"] = store_index(exact, self.options)
        q = self._act(self._project("indexer.wq_b", qr)).reshape(
            len(wanted), config.index_heads, config.index_dim
        )
        trace["index_q"] = store_index(rotate(q, wanted, self.inv_freq), self.options)
        fold = config.index_dim**-0.5 * config.index_heads**-0.5
        trace["index_weights"] = self._act(self._project("indexer.weights_proj", x[wanted])) * fold
        scores = index_scores(trace["index_q"], trace["index_weights"], trace["index_entries"], self.options)
        hidden = np.arange(scores.shape[1])[None, :] >= trace["visible"][:, None]
        trace["index_scores"] = np.where(hidden, -np.inf, scores)

    def _attend(self, trace: Trace, qr: F64) -> None:
        config, wanted = self.config, trace["positions"]
        q = self._act(self._project("wq_b", qr)).reshape(len(wanted), config.heads, config.head_dim)
        trace["q"] = self._act(rotate(self._head_norm(q), wanted, self.inv_freq))
        sink = self._weight("attn_sink")
        trace["attention"], trace["lse"] = np.zeros_like(q), np.zeros(q.shape[:2])
        for row, position in enumerate(wanted):
            window = trace["kv"][max(0, position - config.window + 1) : position + 1]
            keys = np.concatenate([window, trace["entries"][trace["selection"][row]]])
            trace["attention"][row], trace["lse"][row] = attend(
                trace["q"][row], keys, sink, config.head_dim**-0.5, self.options.p_dtype
            )
        trace["o"] = rotate(trace["attention"], wanted, self.inv_freq, inverse=True)

    def _head_norm(self, q: F64) -> F64:
        if self.options.q_norm_rounding == "fp32":
            return rms_norm(q, None, self.config.eps)
        mean = to_bf16(to_bf16(np.square(q)).mean(axis=-1, keepdims=True))
        return to_bf16(q * to_bf16(1 / np.sqrt(to_bf16(mean + self.config.eps))))

    def _output(self, o: F64) -> F64:
        groups = self.config.o_groups
        grouped = o.reshape(len(o), groups, o.shape[1] * o.shape[2] // groups)
        if self.options.o_quant == "fp8_1x128":
            grouped = through_e4m3(grouped, 128, FLOOR_OUTPUT)
        wo_a = np.asarray(self.weights["wo_a"]).reshape(groups, -1, grouped.shape[-1])
        z = np.stack([grouped[:, g] @ wo_a[g].astype(np.float64).T for g in range(groups)], axis=1)
        return self._project("wo_b", z.reshape(len(o), z.shape[1] * z.shape[2]))
