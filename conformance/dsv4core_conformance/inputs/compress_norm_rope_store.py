"""Arguments of `compress_norm_rope_store`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dsv4core_conformance.inputs import pages as memory
from dsv4core_conformance.inputs.numbers import Kind, Numbers, integers, tensor
from dsv4core_conformance.inputs.pages import Place
from dsv4core_conformance.inputs.tokens import EPS, step_tokens, table_up_to
from dsv4core_conformance.reference import rows as reference


def make(
    *, lengths: Sequence[int] = (13, 8), starts: Sequence[int] | None = None, ratio: int = 4,
    head_dim: int = 512, layout: str | None = None, rows: int | None = None,
    pages: int | None = None, place: Place | None = None, state_rows: int | None = None,
    state_place: Place | None = None, state_fill: float | None = None,
    holes: bool = False, short: int = 0, values: Kind = "normal", weights: str = "bf16", seed: int = 1,
    score_scale: float = 1.0, outlier: float = 0.0,
) -> dict[str, Any]:  # fmt: skip
    """Requests whose tokens `start` .. `length - 1` are in this step, with states of all earlier tokens.

    `holes` takes away the state slot or the entry's slot of two windows in three. `outlier` scales two
    channels.
    """
    source = Numbers(seed)
    layout = layout or ("fp8_ds_mla" if head_dim == 512 else "index_fp8")
    rows, state_rows = rows or (64 if ratio == 4 else 2), state_rows or (4 if ratio == 4 else 8)
    width = head_dim * (2 if ratio == 4 else 1)
    position, request = step_tokens(lengths, starts)
    state_pages = sum(-(-n // state_rows) for n in lengths) + 2
    table = memory.block_table(source, lengths, state_rows, state_pages)
    state = memory.states(state_pages, state_rows, width, state_place, state_fill)
    for b, length in enumerate(lengths):
        at = reference.table_slots(table.numpy(), np.int64(b), np.arange(length), state_rows)
        values_of = source.of(values, length, 2 * width) if length else np.zeros((0, 2 * width), np.float32)
        values_of[:, width:] *= np.float32(score_scale)
        if outlier:
            values_of[:, 5:width:head_dim] *= np.float32(outlier)
            values_of[:, 77:width:head_dim] *= np.float32(outlier)
        state[at // state_rows, at % state_rows] = torch.from_numpy(values_of)
    own = reference.table_slots(table.numpy(), request, position, state_rows)
    entries = sum(n // ratio for n in lengths)
    count = pages or entries // rows + 2
    closing = position % ratio == ratio - 1
    target = np.full(len(position), -1)
    target[closing] = source.permutation(count * rows)[: int(closing.sum())]
    if holes:
        own[np.flatnonzero(closing)[::3]] = -3
        target[np.flatnonzero(closing)[1::3]] = -5
    return {
        "state_cache": state,
        "positions": integers(position),
        "token_to_req": integers(request, torch.int32),
        "slot_mapping": integers(own[: len(own) - short]),
        "block_table": table,
        "cos_sin": table_up_to("compress", position),
        "norm_weight": tensor(source.normal(head_dim), weights),
        "k_cache": memory.pages(layout, count, rows, place),
        "kv_slot_mapping": integers(target),
        "ratio": ratio,
        "head_dim": head_dim,
        "rows": rows,
        "layout": layout,
        "eps": EPS,
        "rotate": "hadamard" if layout in reference.ROTATED else "none",
    }
