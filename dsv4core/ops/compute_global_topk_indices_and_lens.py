"""Turn request-local entry numbers into cache slots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.ops._contract import BOOL, I32, check_range, spec
from dsv4core.ops._op import op
from dsv4core.slots import MOST, table_slots

NAME = "compute_global_topk_indices_and_lens"


def _fake(
    topk: Tensor, token_to_req: Tensor, block_table: Tensor, is_valid: Tensor, *, rows: int
) -> tuple[Tensor, Tensor]:
    return topk.new_empty(topk.shape), topk.new_empty(topk.shape[0])


def _values(a: Mapping[str, Any], dims: Mapping[str, int]) -> None:
    check_range(NAME, "token_to_req", a["token_to_req"], 0, max(dims["R"], 1), "requests")
    if not dims["R"] or not a["topk"].numel():
        return
    live = (a["topk"] >= 0) & a["is_valid"].unsqueeze(1)
    slots = table_slots(a["block_table"], a["token_to_req"].unsqueeze(1), a["topk"].long(), a["rows"])
    bad = (live & ((slots < 0) | (slots > MOST))).nonzero()
    if bad.shape[0]:
        where = bad[0].tolist()
        raise OpArgumentError(
            NAME,
            "topk",
            f"entries below {dims['W'] * a['rows']} with a page",
            f"{int(a['topk'][tuple(where)])} at {where}",
        )


@op(
    fake=_fake,
    values=_values,
    tensors={
        "topk": spec("T K", I32, strides="any"),
        "token_to_req": spec("T", I32, strides="any"),
        "block_table": spec("R W", I32, strides="any"),
        "is_valid": spec("T", BOOL, strides="any"),
    },
)
def compute_global_topk_indices_and_lens(
    topk: Tensor, token_to_req: Tensor, block_table: Tensor, is_valid: Tensor, *, rows: int
) -> tuple[Tensor, Tensor]:
    """Slots of the listed entries, valid ones first in their order, and how many there are.

    Shapes: topk i32 [T, K] (negative: none), token_to_req i32 [T], block_table i32 [R, W], is_valid bool [T]
    (false: a row of -1, length 0) -> slots i32 [T, K], lens i32 [T]. An entry without a page, or with one so
    far that its slot is no i32, raises in checked mode and becomes -1 otherwise.
    """
    if rows < 1:
        raise OpArgumentError(NAME, "rows", ">= 1", str(rows))
    if not block_table.shape[0]:
        return torch.full_like(topk, -1), topk.new_zeros(topk.shape[0])
    index = torch.where(is_valid.unsqueeze(1), topk, -1).long()
    slots = table_slots(block_table, token_to_req.unsqueeze(1), index, rows)
    slots = torch.where(slots > MOST, -1, slots)
    found = slots >= 0
    order = torch.argsort(~found, dim=1, stable=True)
    return slots.gather(1, order).to(torch.int32), found.sum(dim=1, dtype=torch.int32)
