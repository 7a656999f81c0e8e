"""Per-head query norm, RoPE of query and key, and the window page write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.numerics.norm import rms_norm
from dsv4core.numerics.rope import rotate_tail
from dsv4core.ops._contract import ACTIVATION, F32, I64, check_range, page, spec
from dsv4core.ops._op import op
from dsv4core.ops._rows import block_rows, blocks, live_rows, page_layout

NAME = "fused_qnorm_rope_kv_insert"


def _fake(
    q: Tensor, kv: Tensor, positions: Tensor, cos_sin: Tensor, k_cache: Tensor, slot_mapping: Tensor, *,
    rows: int, layout: str, eps: float, padded_heads: int,
) -> Tensor:  # fmt: skip
    return q.new_empty(q.shape[0], padded_heads, q.shape[2])


def _values(a: Mapping[str, Any], dims: Mapping[str, int]) -> None:
    check_range(NAME, "positions", a["positions"], 0, dims["P"], "positions")
    check_range(NAME, "slot_mapping", a["slot_mapping"], -(2**63), dims["N"] * a["rows"], "slots")


@op(
    fake=_fake,
    mutates=("k_cache",),
    values=_values,
    tensors={
        "q": spec("T H 512", *ACTIVATION),
        "kv": spec("T 512", *ACTIVATION),
        "positions": spec("T", I64, strides="any"),
        "cos_sin": spec("P 64", F32, finite=False),
        "k_cache": page(),
        "slot_mapping": spec("<=T", I64, strides="any"),
    },
)
def fused_qnorm_rope_kv_insert(
    q: Tensor, kv: Tensor, positions: Tensor, cos_sin: Tensor, k_cache: Tensor, slot_mapping: Tensor, *,
    rows: int, layout: str, eps: float, padded_heads: int,
) -> Tensor:  # fmt: skip
    """Normalise every query head (no weight), rotate queries and keys, and write the keys' window rows.

    Shapes: q bf16 [T, H, 512], kv bf16 [T, 512], positions i64 [T], cos_sin f32 [P, 64], k_cache u8 [N, B]
    (written), slot_mapping i64 [<= T] (negative: skip) -> q bf16 [T, padded_heads, 512], heads H.. are zero.
    Touches exactly the live rows' bytes. Source: CA1 rules 3, 5, 7-9.
    """
    target = page_layout(NAME, layout, rows=rows, pages=k_cache, families=("main",))
    tokens, heads, dim = q.shape
    if padded_heads < heads:
        raise OpArgumentError(NAME, "padded_heads", f">= {heads}, the number of heads", str(padded_heads))
    angles = cos_sin[positions]
    out = q.new_zeros(tokens, padded_heads, dim) if padded_heads > heads else q.new_empty(q.shape)
    for part in blocks(tokens, block_rows(heads * dim * 4, q.device)):
        normed = rms_norm(q[part].float(), None, eps)
        out[part, :heads] = rotate_tail(normed, angles[part].unsqueeze(1))
    live, slots = live_rows(slot_mapping)
    row = rotate_tail(kv.index_select(0, live).float(), angles[live])
    target.write(k_cache, slots, target.encode(row), rows)
    return out
