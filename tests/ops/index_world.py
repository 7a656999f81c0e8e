"""Index queries and entries of several requests, with float64 scores; what the tests of three ops share."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from op_reference import F32, INDEX, Pages, e2m1_values, e4m3_values

LAYOUTS = INDEX


class IndexWorld:
    """`lens` entries are visible to token t, which belongs to request t mod 3."""

    def __init__(
        self, rng: np.random.Generator, layout: str, lens: list[int], *, heads: int = 4, **place: int
    ) -> None:
        self.layout, self.lens = layout, lens
        tokens, requests = len(lens), 3
        width = -(-max(*lens, 1) // 64) + 1
        self.requests = torch.tensor([t % requests for t in range(tokens)], dtype=torch.int32)
        shuffled = rng.permutation(requests * width).astype(np.int32).reshape(width, requests)
        self.table = torch.from_numpy(shuffled.T)
        self.pages = Pages(layout, requests * width, 64, **place)
        self.keys = np.zeros((requests * width * 64, 128))
        for slot in range(requests * width * 64):
            v = rng.standard_normal(128) * 2.0 ** rng.integers(-4, 5)
            self.pages.fill(slot, v.astype(F32))
            self.keys[slot] = self.pages.get(slot)
        self.weights = torch.from_numpy(rng.standard_normal((tokens, heads)).astype(F32))
        self.scales = None
        if layout.startswith("index_fp8"):
            code = rng.integers(0, 127, (tokens, heads, 128)) + 128 * rng.integers(0, 2, (tokens, heads, 128))
            self.q = torch.from_numpy(code.astype(np.uint8)).view(torch.float8_e4m3fn)
            self.queries = e4m3_values(code).astype(np.float64)
        elif layout == "index_f32":
            self.q = torch.from_numpy(rng.standard_normal((tokens, heads, 128)).astype(F32))
            self.queries = self.q.numpy().astype(np.float64)
        else:
            code = rng.integers(0, 256, (tokens, heads, 64)).astype(np.uint8)
            byte = rng.integers(120, 135, (tokens, heads, 4)).astype(np.uint8)
            self.q, self.scales = torch.from_numpy(code), torch.from_numpy(byte)
            self.queries = e2m1_values(code) * np.exp2(byte.astype(np.float64) - 127).repeat(32, -1)

    def arguments(self, **change: Any) -> dict[str, Any]:
        """What `indexer_logits` and `sparse_indexer` have in common."""
        lens = change.pop("lens", self.lens)
        requests = change.pop("requests", self.requests.tolist())
        rotate = "hadamard" if "hadamard" in self.layout else "none"
        return {
            "q": self.q, "q_scales": self.scales, "weights": self.weights, "k_cache": self.pages.tensor,
            "context_lens": torch.tensor(lens, dtype=torch.int32),
            "token_to_req": torch.tensor(requests, dtype=torch.int32), "block_table": self.table,
            "rows": 64, "layout": self.layout, "rotate": rotate, **change,
        }  # fmt: skip

    def logits(self, ops: Any, max_len: int, **change: Any) -> torch.Tensor:
        return ops.indexer_logits(**self.arguments(max_len=max_len, **change))

    def only(self, t: int) -> IndexWorld:
        """The same world with one token."""
        other = copy.copy(self)
        part = slice(t, t + 1)
        other.lens, other.requests, other.q, other.weights = (
            self.lens[part],
            self.requests[part],
            self.q[part],
            self.weights[part],
        )
        other.scales = None if self.scales is None else self.scales[part]
        return other

    def exact(self, max_len: int) -> tuple[np.ndarray, np.ndarray]:
        """float64 scores, -inf where hidden, and the bound of index scores (docs/arithmetic.md)."""
        out = np.full((len(self.lens), max_len), -np.inf)
        bound = np.zeros_like(out)
        w = self.weights.numpy().astype(np.float64)
        for t, n in enumerate(self.lens):
            for s in range(min(n, max_len)):
                slot = int(self.table[int(self.requests[t]), s // 64]) * 64 + s % 64
                products = self.queries[t] * self.keys[slot]
                out[t, s] = (np.maximum(products.sum(-1), 0) * w[t]).sum()
                bound[t, s] = 1e-5 * (np.abs(w[t]) * np.abs(products).sum(-1)).sum()
        return out, bound
