"""Close a window: pool its states, normalise, rotate, quantise and store one entry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.numerics.hadamard import hadamard128
from dsv4core.numerics.norm import rms_norm
from dsv4core.numerics.pool import pool
from dsv4core.numerics.rope import rotate_tail
from dsv4core.ops._contract import F32, I32, I64, NORM, check_range, page, spec
from dsv4core.ops._op import op
from dsv4core.ops._rows import block_rows, blocks, page_layout
from dsv4core.slots import slot_rows, table_slots

NAME = "compress_norm_rope_store"


def _fake(
    state_cache: Tensor, positions: Tensor, token_to_req: Tensor, slot_mapping: Tensor, block_table: Tensor,
    cos_sin: Tensor, norm_weight: Tensor, k_cache: Tensor, kv_slot_mapping: Tensor, *,
    ratio: int, head_dim: int, rows: int, layout: str, eps: float, rotate: str,
) -> None:  # fmt: skip
    return None


def _values(a: Mapping[str, Any], dims: Mapping[str, int]) -> None:
    check_range(NAME, "positions", a["positions"], 0, dims["P"], "positions")
    check_range(NAME, "token_to_req", a["token_to_req"], 0, max(dims["R"], 1), "requests")
    check_range(NAME, "kv_slot_mapping", a["kv_slot_mapping"], -(2**63), dims["PAGES"] * a["rows"], "slots")
    check_range(NAME, "block_table", a["block_table"], -(2**31), dims["N"], "pages")


@op(
    fake=_fake,
    mutates=("k_cache",),
    values=_values,
    tensors={
        "state_cache": spec("N S W2", F32, finite=False),
        "positions": spec("T", I64, strides="any"),
        "token_to_req": spec("T", I32, strides="any"),
        "slot_mapping": spec("<=T", I64, strides="any"),
        "block_table": spec("R W", I32, strides="any"),
        "cos_sin": spec("P 64", F32, finite=False),
        "norm_weight": spec("head_dim", *NORM),
        "k_cache": page("main", "index", shape="PAGES B"),
        "kv_slot_mapping": spec("T", I64, strides="any"),
    },
)
def compress_norm_rope_store(
    state_cache: Tensor, positions: Tensor, token_to_req: Tensor, slot_mapping: Tensor, block_table: Tensor,
    cos_sin: Tensor, norm_weight: Tensor, k_cache: Tensor, kv_slot_mapping: Tensor, *,
    ratio: int, head_dim: int, rows: int, layout: str, eps: float, rotate: str,
) -> None:  # fmt: skip
    """For every token that completes a window: pool, norm, rotate at the window's first position, store.

    Shapes: state_cache f32 [N, S, 2W] with W = head_dim (ratio 128) or 2 head_dim (ratio 4, overlap),
    positions i64 [T], token_to_req i32 [T], slot_mapping i64 [<= T] and block_table i32 [R, W] of the state
    cache, cos_sin f32 [P, 64], norm_weight [head_dim], k_cache u8 [pages, B] (written), kv_slot_mapping i64
    [T] (`compressed_slot_mapping`). rotate: "none" or "hadamard" and must be the layout's. Source: CA1 rules
    2-5 and 7-10.
    """
    target = page_layout(NAME, layout, rows=rows, pages=k_cache, families=("main", "index"))
    _check(
        target.width, target.rotate, state_cache, ratio=ratio, head_dim=head_dim, layout=layout, rotate=rotate
    )
    live = slot_mapping.shape[0]
    p = positions[:live]
    closes = ((p + 1) % ratio == 0) & (slot_mapping >= 0) & (kv_slot_mapping[:live] >= 0)
    tokens = closes.nonzero().squeeze(1)
    window = state_cache.shape[2] // 2 // head_dim * ratio
    states = _state_slots(p[tokens], token_to_req[tokens], block_table, window, state_cache.shape[1])
    for part in blocks(tokens.shape[0], block_rows(head_dim * 4, p.device)):
        t = tokens[part]
        windows = blocks(t.shape[0], block_rows(window * head_dim * 4, p.device))
        entry = torch.cat([_entry(state_cache, states[part][some], ratio, head_dim) for some in windows])
        entry = rms_norm(entry, norm_weight, eps)
        entry = rotate_tail(entry, cos_sin[p[t] - ratio + 1])  # RoPE sees the unrounded value
        if not target.plain_f32:
            entry = entry.to(torch.bfloat16)
        if rotate == "hadamard":
            entry = hadamard128(entry)
        target.write(k_cache, kv_slot_mapping[t], target.encode(entry), rows)


def _state_slots(last: Tensor, request: Tensor, table: Tensor, window: int, rows: int) -> Tensor:
    """State rows of the windows ending at `last`, -1 before position 0. Shapes: [n] -> i64 [n, window]."""
    index = last.unsqueeze(1) + torch.arange(1 - window, 1, device=last.device)
    slots = table_slots(table, request.unsqueeze(1), index, rows)
    holes = (index >= 0) & (slots < 0)
    if bool(holes.any()):
        expected = f"a state page for position {int(index[holes][0])}"
        raise OpArgumentError(NAME, "block_table", expected, "-1 or a narrower table")
    return slots


def _entry(state: Tensor, slots: Tensor, ratio: int, head_dim: int) -> Tensor:
    """Pooled windows: the older half reads the first half of the projection, the newer one the second."""
    width, valid = state.shape[2] // 2, slots >= 0
    column = torch.arange(slots.shape[1], device=slots.device) // ratio * head_dim
    parts: list[Tensor] = []
    for first in (0, width):
        parts.append(slot_rows(state, slots.clamp(min=0), column + first, head_dim))
    return pool(parts[0], parts[1], valid)


def _check(
    width: int | None, flag: str, state: Tensor, *, ratio: int, head_dim: int, layout: str, rotate: str
) -> None:
    if ratio not in (4, 128):
        raise OpArgumentError(NAME, "ratio", "4 (overlapping) or 128", str(ratio))
    if width != head_dim:
        raise OpArgumentError(NAME, "head_dim", f"{width}, the row width of {layout}", str(head_dim))
    if rotate != flag:
        raise OpArgumentError(NAME, "rotate", f"{flag!r}, the flag of {layout}", repr(rotate))
    expected = 2 * head_dim * (2 if ratio == 4 else 1)
    if state.shape[2] != expected:
        raise OpArgumentError(NAME, "state_cache", f"last dimension {expected}", str(state.shape[2]))
