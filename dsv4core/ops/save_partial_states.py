"""Keep every token's compressor projection until its window closes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dsv4core.ops._contract import F32, I64, check_range, spec
from dsv4core.ops._op import op
from dsv4core.ops._rows import block_rows, blocks, live_rows

NAME = "save_partial_states"


def _fake(
    kv: Tensor,
    score: Tensor,
    ape: Tensor,
    positions: Tensor,
    state_cache: Tensor,
    slot_mapping: Tensor,
    *,
    ratio: int,
) -> None:
    return None


def _values(a: Mapping[str, Any], dims: Mapping[str, int]) -> None:
    check_range(NAME, "slot_mapping", a["slot_mapping"], -(2**63), dims["N"] * dims["S"], "slots")
    check_range(NAME, "positions", a["positions"], 0, 2**62, "positions")


@op(
    fake=_fake,
    mutates=("state_cache",),
    values=_values,
    tensors={
        "kv": spec("T W", F32),
        "score": spec("T W", F32),
        "ape": spec("ratio W", F32),
        "positions": spec("T", I64, strides="any"),
        "state_cache": spec("N S 2*W", F32, finite=False),
        "slot_mapping": spec("<=T", I64, strides="any"),
    },
)
def save_partial_states(
    kv: Tensor,
    score: Tensor,
    ape: Tensor,
    positions: Tensor,
    state_cache: Tensor,
    slot_mapping: Tensor,
    *,
    ratio: int,
) -> None:
    """Store [kv | score + ape[position mod ratio]] of every live token in its state row.

    Shapes: kv, score f32 [T, W] (halves of one projection), ape f32 [ratio, W], positions i64 [T],
    state_cache f32 [N, rows, 2W] with any stride(0) (written), slot_mapping i64 [<= T]. Exact: one f32
    addition.
    """
    live, slots = live_rows(slot_mapping)
    rows, width = state_cache.shape[1], kv.shape[1]
    page, row = slots // rows, slots % rows
    phase = positions[live] % ratio
    for part in blocks(live.shape[0], block_rows(width * 8, kv.device)):
        t = live[part]
        states = kv.new_empty(t.shape[0], 2 * width)
        torch.index_select(kv, 0, t, out=states[:, :width])
        torch.add(score.index_select(0, t), ape.index_select(0, phase[part]), out=states[:, width:])
        state_cache[page[part], row[part]] = states
