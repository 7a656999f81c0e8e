"""Where the entry that a token completes is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dsv4core.ops._contract import I32, I64, check_range, spec
from dsv4core.ops._op import op
from dsv4core.slots import table_slots

NAME = "compressed_slot_mapping"


def _fake(
    positions: Tensor,
    slot_mapping: Tensor,
    token_to_req: Tensor,
    block_table: Tensor,
    *,
    ratio: int,
    rows: int,
) -> Tensor:
    return positions.new_empty(positions.shape)


def _values(a: Mapping[str, Any], dims: Mapping[str, int]) -> None:
    check_range(NAME, "token_to_req", a["token_to_req"], 0, max(dims["R"], 1), "requests")
    live = a["slot_mapping"] >= 0
    positions = torch.where(live, a["positions"][: live.shape[0]], 0)
    check_range(NAME, "positions", positions, 0, 2**62, "positions")


@op(
    fake=_fake,
    values=_values,
    tensors={
        "positions": spec("T", I64, strides="any"),
        "slot_mapping": spec("<=T", I64, strides="any"),
        "token_to_req": spec("T", I32, strides="any"),
        "block_table": spec("R W", I32, strides="any"),
    },
)
def compressed_slot_mapping(
    positions: Tensor,
    slot_mapping: Tensor,
    token_to_req: Tensor,
    block_table: Tensor,
    *,
    ratio: int,
    rows: int,
) -> Tensor:
    """The slot of entry floor(p / ratio) for a token that completes it, -1 for every other token.

    Shapes: positions i64 [T], slot_mapping i64 [<= T] (the tokens' own slots: negative or absent means
    padding), token_to_req i32 [T], block_table i32 [R, W] of the compressed cache -> i64 [T].
    """
    out = torch.full_like(positions, -1)
    live = slot_mapping.shape[0]
    p = positions[:live]
    boundary = ((p + 1) % ratio == 0) & (slot_mapping >= 0)
    if block_table.shape[0]:
        entry = torch.div(p, ratio, rounding_mode="floor")
        out[:live] = torch.where(boundary, table_slots(block_table, token_to_req[:live], entry, rows), -1)
    return out
