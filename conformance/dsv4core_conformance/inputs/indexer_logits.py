"""Arguments of `indexer_logits`, most of which `sparse_indexer` shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsv4core_conformance.inputs.attention_pages import index_pages
from dsv4core_conformance.inputs.draws import i32, placed
from dsv4core_conformance.inputs.hashed import Draws
from dsv4core_conformance.inputs.pages import Place
from dsv4core_conformance.reference.quant import e2m1_codes, e4m3_codes


def packed_queries(values: NDArray[np.float64], layout: str, rng: Draws) -> tuple[Tensor, Tensor | None]:
    """Queries as the layout's reader takes them. Shapes: [T, H, 128] -> values, scales or None"""
    if layout == "index_f32":
        return torch.from_numpy(values.astype(np.float32)), None
    if layout.startswith("index_fp8"):
        return torch.from_numpy(e4m3_codes(values)).view(torch.float8_e4m3fn), None
    codes = e2m1_codes(values)
    byte = np.full((*values.shape[:2], 4), 127) + rng.integers(-1, 3, (*values.shape[:2], 4))
    packed = codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4))
    return torch.from_numpy(packed), torch.from_numpy(byte.astype(np.uint8))


def common(
    *, tokens: int = 3, heads: int = 4, context: int = 150, lens: Sequence[int] | None = None,
    requests: int = 2,
    layout: str = "index_fp8", rows: int = 64, kind: str = "normal", weights: str = "both",
    place: Place | None = None, physical: int | None = None, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """What both ops take. Token t belongs to request t mod `requests`.

    `lens` are the visible entries of every token (drawn up to `context` otherwise). `kind` "dyadic": every
    score is a float32 without rounding, and many are equal. `weights`: "both" signs, "negative", "positive".
    `physical`: pages in the cache where fewer than the tables name are wanted (they repeat).
    """
    rng = Draws(seed, "index", kind)
    n = np.asarray(lens if lens is not None else rng.integers(0, context + 1, tokens), dtype=np.int64)
    tokens = len(n)
    across = -(-max(int(n.max(initial=0)), context) // rows) + 1
    pages = requests * across if physical is None else physical
    table = np.resize(rng.permutation(pages), (across, requests)).T
    if kind == "dyadic":
        q = rng.integers(-2, 3, (tokens, heads, 128)).astype(np.float64)
        w = rng.integers(-8, 9, (tokens, heads)) / 4
    else:
        q = rng.standard_normal((tokens, heads, 128)) * (2 if layout.startswith("index_mxfp4") else 100)
        w = rng.standard_normal((tokens, heads))
    w = {"both": w, "negative": -np.abs(w), "positive": np.abs(w)}[weights]
    values, scales = packed_queries(q, layout, rng)
    return {
        "q": values, "q_scales": scales, "weights": torch.from_numpy(w.astype(np.float32)),
        "k_cache": placed(index_pages(layout, rows, pages, kind, seed), place), "context_lens": i32(n),
        "token_to_req": i32(np.arange(tokens) % requests), "block_table": i32(table), "rows": rows,
        "layout": layout, "rotate": "hadamard" if "hadamard" in layout else "none",
    }  # fmt: skip


def make(*, max_len: int | None = None, **options: Any) -> dict[str, Any]:
    """`max_len` defaults to a few cells behind the longest context; other options as in `common`."""
    arguments = common(**options)
    longest = int(arguments["context_lens"].max()) if len(arguments["context_lens"]) else 0
    return {**arguments, "max_len": longest + 7 if max_len is None else max_len}
