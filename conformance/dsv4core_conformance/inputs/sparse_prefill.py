"""Arguments of `sparse_prefill`."""

from __future__ import annotations

from typing import Any

from dsv4core_conformance.inputs.draws import Lens, Sink, activation, i32, sinks
from dsv4core_conformance.inputs.hashed import Draws
from dsv4core_conformance.inputs.sparse_decode import SCALE, listed, written


def make(
    *, tokens: int = 3, heads: int = 4, window: int = 40, keys: int = 70, act: str = "bf16",
    lens: Lens = "random",
    holes: str | float = 0.0, duplicates: bool = False, sink: Sink = "distinct", spread: float = 2.0,
    scale: float = SCALE, fill: float = 9.0, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """`window` is the width of the lists, `keys` the number of workspace rows."""
    rng = Draws(seed, "sparse_prefill")
    rows = rng.standard_normal((keys, 512)) * 2.0 ** rng.integers(-2, 2, (keys, 1))
    indices, n = listed(tokens, window, keys, lens, holes, duplicates, rng)
    return {
        "q": activation(rng.standard_normal((tokens, heads, 512)) * spread, act), "kv": activation(rows, act),
        "indices": i32(indices), "lens": i32(n), "attn_sink": sinks(sink, heads),
        "out": written(tokens, heads, act, fill), "scale": scale,
    }  # fmt: skip
