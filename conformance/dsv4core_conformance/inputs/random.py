"""Drawn options for every op's inputs: what the written cases did not think of."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from dsv4core_conformance.inputs.hashed import Draws
from dsv4core_conformance.reference.rows import INDEX, MAIN, PLAIN

Options = dict[str, Any]
QUERIES = {
    "fp8": "index_fp8",
    "fp8_f32": "index_fp8_hadamard_f32",
    "mxfp4": "index_mxfp4",
    "f32": "index_f32",
}
"""The layout whose queries are of a format."""


class Draw:
    """Draws of one seed for one op, among the layouts that a backend claims."""

    def __init__(self, op: str, seed: int, layouts: Collection[str]) -> None:
        self.rng = Draws(seed, "options", op)
        self.layouts = layouts

    def size(self, low: int, high: int) -> int:
        """An integer in [low, high], small ones as likely as large ones."""
        span = np.log(high - low + 1)
        return low + int(np.exp(self.rng.uniform(0, span))) - 1

    def one(self, *values: Any) -> Any:
        """One of these."""
        return values[int(self.rng.integers(len(values)))]

    def layout(self, *wanted: str) -> str:
        """One of the claimed layouts among these. Raises ValueError where none is claimed."""
        claimed = [layout for layout in wanted if layout in self.layouts]
        if not claimed:
            raise ValueError(f"none of {', '.join(wanted)} is claimed")
        return str(self.one(*claimed))

    def act(self) -> str:
        """A type of activations: float32 too where profile `math` is claimed."""
        return str(self.one("bf16", "bf16", "f32")) if "f32_row" in self.layouts else "bf16"

    def format(self) -> str:
        """A format of index queries whose layout is claimed."""
        return str(self.one(*(name for name, layout in QUERIES.items() if layout in self.layouts)))

    def place(self, step: int = 1) -> dict[str, int] | None:
        """No place of its own, or some bytes before and between pages."""
        gap = {"lead": step * int(self.rng.integers(0, 40)), "gap": step * int(self.rng.integers(0, 40))}
        return gap if self.rng.random() < 0.7 else None

    def sizes(self, count: int, high: int) -> list[int]:
        """Some sizes from 0 on."""
        return [self.size(0, high) for _ in range(count)]


def _decode(d: Draw) -> Options:
    layout = d.layout(*MAIN)
    plain = layout in PLAIN
    return {
        "tokens": d.size(1, 12), "heads": d.size(1, 20), "window": d.size(1, 140), "layout": layout,
        "extra": d.one(None, d.size(1, 200)), "rows": d.one(1, 16, 64, 100),
        "extra_layout": layout if plain else d.layout(*(m for m in MAIN if m not in PLAIN)),
        "extra_rows": d.one(1, 2, 64), "pages": d.size(1, 6), "extra_pages": d.size(1, 40),
        "place": d.place(),
        "lens": d.one("random", "full", "short", "mixed"), "extra_lens": d.one("random", "full", "short",
        "mixed"),
        "holes": d.one(0.0, 0.1, 0.7, "leading", "trailing", "middle"), "duplicates": d.one(False, True),
        "sink": d.one("none", "zero", "five", "distinct"), "spread": d.one(0.01, 0.5, 2.0, 6.0),
        "scale": d.one(512**-0.5, 0.1),
    }  # fmt: skip


def _decode_turned(d: Draw) -> Options:
    groups = d.one(1, 2, 4, 8)
    return {
        **_decode(d), "heads": groups * d.size(1, 3), "groups": groups, "table": d.one("main", "compress"),
        "scale_format": d.one("none", "f32", "ue8m0x4"), "positions": d.one(10, 3000),
    }  # fmt: skip


def _prefill(d: Draw) -> Options:
    return {
        "tokens": d.size(1, 40), "heads": d.size(1, 20), "window": d.size(1, 260), "keys": d.size(1, 400),
        "act": d.act(), "lens": d.one("random", "full", "short", "mixed"),
        "holes": d.one(0.0, 0.1, 0.7, "leading", "block"), "duplicates": d.one(False, True),
        "sink": d.one("none", "zero", "five", "distinct"), "spread": d.one(0.01, 0.5, 2.0, 6.0),
    }  # fmt: skip


def _index(d: Draw) -> Options:
    requests = d.size(1, 5)
    return {
        "layout": d.layout(*INDEX), "lens": d.sizes(d.size(1, 12), 300), "requests": requests,
        "heads": d.size(1, 40),
        "rows": d.one(1, 16, 64, 100), "weights": d.one("both", "negative", "positive"), "place": d.place(4),
        "kind": d.one("normal", "dyadic"),
    }  # fmt: skip


def _combine(d: Draw) -> Options:
    count = d.size(1, 6)
    return {
        "queries": d.sizes(count, 40), "prefixes": d.sizes(count, 700), "window": d.size(1, 130),
        "ratio": d.one(1, 4, 128), "top_k": d.size(0, 600), "first": d.size(0, 1000), "spare": d.size(0, 9),
        "room": d.size(0, 50), "holes": d.one(0.0, 0.3),
    }  # fmt: skip


def _compress(d: Draw) -> Options:
    ratio, head_dim = d.one((4, 512), (4, 128), (128, 512))
    lengths = d.sizes(d.size(1, 3), 3 * ratio)
    return {
        "ratio": ratio, "head_dim": head_dim, "lengths": lengths, "starts": [d.size(0, n) for n in lengths],
        "layout": d.layout(*(MAIN if head_dim == 512 else INDEX)), "rows": d.one(1, 2, 64),
        "place": d.place(),
        "state_rows": d.one(1, 4, 5, 8, 100), "holes": d.one(False, True), "short": d.one(0, 0, 1),
        "values": d.one("normal", "spread", "corners"), "weights": d.one("bf16", "f32"),
    }  # fmt: skip


_VALUES = ("normal", "spread", "corners")
_SLOTS = ("permuted", "sequential", "holes", "negative", "short", "empty", "none")
_OPTIONS: dict[str, Callable[[Draw], Options]] = {
    "fused_q_kv_rmsnorm": lambda d: {
        "tokens": d.size(0, 20), "q_width": d.size(1, 1600), "kv_width": 512, "act": d.act(),
        "weights": d.one("bf16", "f32"), "kv_weights": d.one("bf16", "f32"), "values": d.one(*_VALUES),
    },
    "fused_qnorm_rope_kv_insert": lambda d: {
        "tokens": d.size(0, 12), "heads": 1 + d.size(0, 7), "padded_heads": d.one(None, 8, 16),
        "layout": d.layout(*MAIN), "rows": d.one(1, 16, 64), "pages": 13, "place": d.place(),
        "slots": d.one(*_SLOTS),
        "values": d.one(*_VALUES), "q_values": d.one(*_VALUES), "positions": d.one(10, 3000),
        "table": d.one("main", "compress"),
    },
    "quantize_and_insert_k_cache": lambda d: {
        "tokens": d.size(0, 12), "layout": d.layout(*MAIN), "rows": d.one(1, 16, 64), "pages": 13,
        "place": d.place(),
        "slots": d.one(*_SLOTS), "values": d.one(*_VALUES),
    },
    "dequantize_and_gather_k_cache": lambda d: {
        "lengths": d.sizes(d.size(1, 4), 150), "layout": d.layout(*MAIN), "rows": d.one(1, 16, 64),
        "place": d.place(),
        "offset": d.size(0, 20), "spare": d.size(0, 4), "values": d.one("normal", "spread"),
    },
    "save_partial_states": lambda d: {
        "tokens": d.size(0, 12), "width": d.one(128, 256, 512, 1024), "ratio": d.one(4, 128),
        "rows": d.one(1, 4, 5, 8, 100),
        "pages": 13, "place": d.place(), "slots": d.one(*_SLOTS), "values": d.one("normal", "spread"),
    },
    "compressed_slot_mapping": lambda d: {
        "lengths": d.sizes(d.size(1, 5), 400), "ratio": d.one(4, 128), "rows": d.one(1, 2, 5, 64, 100),
        "short": d.one(0, 0, 1), "holes": d.one(False, True), "unmapped": d.one(False, True),
    },
    "compress_norm_rope_store": _compress,
    "fused_indexer_q_rope_quant": lambda d: {
        "tokens": d.size(0, 20), "heads": d.size(1, 70), "format": d.format(),
        "rotate": d.one("none", "hadamard"), "weights": d.one("bf16", "f32"), "spread": d.size(0, 40),
        "softmax_scale": d.one(128**-0.5, 0.37, 3.0),
        "column": d.one(0, 8),
    },
    "indexer_logits": lambda d: {**_index(d), "max_len": d.one(None, 0, 64, 333)},
    "indexer_topk": lambda d: {
        "tokens": d.size(1, 40), "width": d.size(1, 3000), "k": d.size(1, 2048),
        "lens": d.one("random", "full", "short", "mixed"), "behind": d.one(np.nan, np.inf, -np.inf, 0.0),
        "column": d.one(0, 3),
        "kind": d.one("normal", "negative", "ties", "equal", "zeros", "near", "bin", "negative_bin", "huge",
        "infinite"),
    },
    "sparse_indexer": lambda d: {**_index(d), "k": d.size(1, 320), "workspace_bytes": d.one(1 << 21,
    1 << 26)},
    "compute_global_topk_indices_and_lens": lambda d: {
        "tokens": d.size(0, 40), "k": d.size(0, 600), "rows": d.one(1, 2, 64), "requests": d.size(1, 9),
        "width": d.size(1, 40), "holes": d.one(0.0, 0.3, "all", "leading"), "valid": d.one(0.0, 0.5, 1.0),
    },
    "combine_topk_swa_indices": _combine,
    "sparse_decode": _decode,
    "sparse_prefill": _prefill,
    "inverse_rope": lambda d: {
        "tokens": d.size(0, 20), "heads": d.size(1, 20), "act": d.act(),
        "values": d.one(*_VALUES),
        "positions": d.one(10, 3000), "table": d.one("main", "compress"),
    },
    "fused_inv_rope_fp8_quant": lambda d: {
        "tokens": d.size(0, 20), "heads": 8, "groups": d.one(1, 2, 4, 8), "scale_format": d.one("f32",
        "ue8m0x4"),
        "values": d.one(*_VALUES), "positions": d.one(10, 3000),
    },
    "fused_sparse_decode_inv_rope": _decode_turned,
    "grouped_output_projection": lambda d: {
        "tokens": d.size(1, 70), "heads": 8, "groups": d.one(1, 2, 4, 8), "lora": d.size(1, 140),
        "o": d.one(d.act(), "e4m3_f32", "e4m3_ue8m0x4"), "weight": d.one("bf16", "u8", "e8m0",
        "f32_scales"),
    },
    "linear": lambda d: {
        "tokens": d.size(1, 70), "inputs": 32 * d.size(1, 20), "outputs": d.size(1, 300),
        "format": d.one("bf16", "fp8_block", "nvfp4", "mxfp4"), "scale": d.one("u8", "e8m0"),
        "out": d.one("bf16", "f32"), "column": d.one(0, 8),
    },
}  # fmt: skip


def options_of(op: str, seed: int, layouts: Collection[str]) -> Options:
    """Options of `make(op, ...)`; the same seed draws the same ones for backends with the same layouts."""
    return {**_OPTIONS[op](Draw(op, seed, layouts)), "seed": seed}
