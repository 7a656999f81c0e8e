"""Arguments of `dequantize_and_gather_k_cache`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dsv4core_conformance.inputs import pages as memory
from dsv4core_conformance.inputs.numbers import Kind, Numbers, integers
from dsv4core_conformance.inputs.pages import Place
from dsv4core_conformance.inputs.tokens import activations_beside
from dsv4core_conformance.reference import rows as reference


def make(
    *, lengths: Sequence[int] = (7, 130, 0), gather: Sequence[int] | None = None, layout: str = "fp8_ds_mla",
    rows: int = 64, pages: int | None = None, place: Place | None = None, act: str | None = None,
    offset: int = 3, spare: int = 2, values: Kind = "spread", seed: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """Requests whose rows lie in hashed pages, and a workspace of NaN; rows no request owns stay poison."""
    source = Numbers(seed)
    count = pages or sum(-(-n // rows) for n in lengths) + 2
    table = memory.block_table(source, lengths, rows, count)
    k_cache = memory.pages(layout, count, rows, place)
    for b, length in enumerate(lengths):
        at = reference.table_slots(table.numpy(), np.int64(b), np.arange(length), rows)
        memory.put(
            k_cache, layout, rows, at, source.of(values, length, 512) if length else np.zeros((0, 512))
        )
    deepest = max(gather if gather is not None else lengths, default=0)
    dtype = torch.float32 if (act or activations_beside(layout)) == "f32" else torch.bfloat16
    return {
        "out": torch.full((len(lengths), offset + deepest + spare, 512), torch.nan, dtype=dtype),
        "k_cache": k_cache,
        "seq_lens": integers(lengths, torch.int32),
        "gather_lens": None if gather is None else integers(gather, torch.int32),
        "block_table": table,
        "rows": rows,
        "offset": offset,
        "layout": layout,
    }
