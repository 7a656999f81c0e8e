"""Queries, caches and lists of decode, with float64 outputs; what the tests of two ops share."""

from __future__ import annotations

import numpy as np
import torch
from op_reference import F32, Pages, array, attention, tensor_bf16

SCALE = 512**-0.5


class AttentionWorld:
    """Tokens, two caches with every row filled, and lists that a test edits before it calls an op."""

    def __init__(
        self,
        rng: np.random.Generator,
        tokens: int,
        heads: int,
        layout: str = "fp8_ds_mla",
        extra: str | None = "fp8_ds_mla",
        **place: int,
    ) -> None:
        self.caches = [Pages(layout, 3, 64, **place)] + ([Pages(extra, 30, 2, **place)] if extra else [])
        for pages in self.caches:
            for slot in range(pages.tensor.shape[0] * pages.rows):
                pages.fill(slot, (rng.standard_normal(512) * 2.0 ** rng.integers(-2, 2)).astype(F32))
        self.q = tensor_bf16(rng.standard_normal((tokens, heads, 512)) * 2)
        if layout == "f32_row":
            self.q = self.q.float() * 1.0001
        sizes = ((192, 40), (60, 24))
        self.slots = [torch.from_numpy(rng.integers(0, n, (tokens, k)).astype(np.int32)) for n, k in sizes]
        self.lens = [torch.from_numpy(rng.integers(1, k + 1, tokens).astype(np.int32)) for _, k in sizes]
        self.sink = torch.from_numpy(rng.standard_normal(heads).astype(F32))

    def lists(self) -> dict[str, object]:
        """Caches, lists and what describes them, by the names of the ops' arguments."""
        named = {"swa_cache": self.caches[0].tensor, "swa_slots": self.slots[0], "swa_lens": self.lens[0]}
        named |= dict.fromkeys(("extra_cache", "extra_slots", "extra_lens"))
        if len(self.caches) > 1:
            named |= {"extra_cache": self.caches[1].tensor}
            named |= {"extra_slots": self.slots[1], "extra_lens": self.lens[1]}
        layouts = {"layout": self.caches[0].layout, "extra_layout": self.caches[-1].layout}
        return {**named, **layouts, "swa_rows": 64, "extra_rows": 2, "scale": SCALE, "attn_sink": self.sink}

    def attended(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of every token the output in float64, its logarithm of sums, and the sizes of its bounds."""
        result = []
        for t in range(self.q.shape[0]):
            keys = [
                pages.get(int(s))
                for pages, slots, lens in zip(self.caches, self.slots, self.lens, strict=False)
                for s in slots[t, : int(lens[t])] if s >= 0
            ]  # fmt: skip
            result.append(
                attention(array(self.q[t]), np.array(keys).reshape(-1, 512), self.sink.numpy(), SCALE)
            )
        return result
