"""Arguments of `sparse_decode`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsv4core_conformance.inputs.attention_pages import main_pages
from dsv4core_conformance.inputs.draws import (
    LARGE,
    TYPES,
    Lens,
    Sink,
    activation,
    i32,
    lengths,
    placed,
    punch,
    sinks,
)
from dsv4core_conformance.inputs.hashed import Draws
from dsv4core_conformance.inputs.pages import Place

SCALE = 512**-0.5


def written(tokens: int, heads: int, act: str, fill: float) -> Tensor:
    """An output that holds something else before the call. Shapes: -> [T, H, 512]"""
    return torch.full((tokens, heads, 512), fill, dtype=TYPES[act])


def listed(
    tokens: int,
    width: int,
    count: int,
    lens: Lens,
    holes: str | float,
    duplicates: bool,
    rng: Draws,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A list per token of `count` rows and its lengths; behind a length stands what must not be read.

    Without `duplicates` a row is listed once, as long as there are enough. Shapes: -> i64 [T, K], i64 [T]
    """
    if duplicates or width > count:
        slots = rng.integers(0, max(count, 1), (tokens, width))
    else:
        slots = rng.permutations(tokens, count)[:, :width]
    if duplicates and width > 1:
        slots[:, 1::2] = slots[:, : width - width % 2 : 2]
    punch(slots, holes, rng)
    n = lengths(lens, tokens, width, rng)
    slots[np.arange(width) >= n[:, None]] = LARGE
    return slots, n


def make(
    *, tokens: int = 3, heads: int = 4, window: int = 40, extra: int | None = 24, layout: str = "fp8_ds_mla",
    extra_layout: str | None = None, rows: int = 64, extra_rows: int = 2, pages: int = 3,
    extra_pages: int = 30,
    place: Place | None = None, lens: Lens = "random", extra_lens: Lens = "random", holes: str | float = 0.0,
    extra_holes: str | float | None = None, duplicates: bool = False, sink: Sink = "distinct",
    spread: float = 2.0,
    scale: float = SCALE, fill: float = 9.0, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """`window` and `extra` are list widths (`extra` None: one cache); `fill` is what `out` holds before."""
    rng = Draws(seed, "sparse_decode")
    act = "f32" if layout == "f32_row" else "bf16"
    q = activation(rng.standard_normal((tokens, heads, 512)) * spread, act)
    slots, n = listed(tokens, window, pages * rows, lens, holes, duplicates, rng)
    second: dict[str, Any] = {"extra_cache": None, "extra_slots": None, "extra_lens": None}
    other = extra_layout or layout
    if extra is not None:
        more = holes if extra_holes is None else extra_holes
        slots_2, n_2 = listed(tokens, extra, extra_pages * extra_rows, extra_lens, more, duplicates, rng)
        second = {
            "extra_cache": placed(main_pages(other, extra_rows, extra_pages, seed), place),
            "extra_slots": i32(slots_2),
            "extra_lens": i32(n_2),
        }
    return {
        "q": q, "swa_cache": placed(main_pages(layout, rows, pages, seed), place), "swa_slots": i32(slots),
        "swa_lens": i32(n), **second, "attn_sink": sinks(sink, heads), "out": written(tokens, heads, act,
        fill),
        "scale": scale, "swa_rows": rows, "extra_rows": extra_rows, "layout": layout, "extra_layout": other,
    }  # fmt: skip
