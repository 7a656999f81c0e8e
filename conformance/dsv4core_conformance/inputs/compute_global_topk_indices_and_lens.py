"""Arguments of `compute_global_topk_indices_and_lens`."""

from __future__ import annotations

from typing import Any

import torch

from dsv4core_conformance.inputs.draws import i32, punch
from dsv4core_conformance.inputs.hashed import Draws


def make(
    *, tokens: int = 4, k: int = 12, rows: int = 64, requests: int = 3, width: int = 5,
    holes: str | float = 0.2,
    valid: str | float = 0.8, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Entries of requests with `width` pages each; `holes` as in `punch`, `valid` the share of live rows."""
    rng = Draws(seed, "global")
    topk = rng.integers(0, width * rows, (tokens, k))
    punch(topk, holes, rng)
    live = rng.random(tokens) < (float(valid) if not isinstance(valid, str) else valid == "all")
    table = rng.permutation(requests * width * 2)[: requests * width].reshape(requests, width)
    return {
        "topk": i32(topk), "token_to_req": i32(rng.integers(0, max(requests, 1), tokens)),
        "block_table": i32(table),
        "is_valid": torch.from_numpy(live), "rows": rows,
    }  # fmt: skip
