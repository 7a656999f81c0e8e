"""Attention of prefill queries over a gathered bf16 workspace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.ops._attend import ATTENTION, attend
from dsv4core.ops._contract import ACTIVATION, F32, I32, check_listed, spec
from dsv4core.ops._op import op
from dsv4core.ops._rows import listed

NAME = "sparse_prefill"


def _fake(
    q: Tensor, kv: Tensor, indices: Tensor, lens: Tensor, attn_sink: Tensor, out: Tensor, *, scale: float
) -> Tensor:
    return attn_sink.new_empty(q.shape[0], q.shape[1])


def _values(a: Mapping[str, Any], dims: Mapping[str, int]) -> None:
    check_listed(NAME, "indices", a["indices"], a["lens"], "lens", dims["S"], "indices")
    if bool(a["attn_sink"].isnan().any()):
        raise OpArgumentError(NAME, "attn_sink", "numbers, -inf or +inf", "NaN")


@op(
    fake=_fake,
    mutates=("out",),
    tolerance=ATTENTION,
    values=_values,
    tensors={
        "q": spec("T H 512", *ACTIVATION),
        "kv": spec("S 512", *ACTIVATION, finite=False),
        "indices": spec("T K", I32, strides="any"),
        "lens": spec("T", I32, strides="any"),
        "attn_sink": spec("H", F32, finite=False),
        "out": spec("T H 512", *ACTIVATION, finite=False),
    },
)
def sparse_prefill(
    q: Tensor, kv: Tensor, indices: Tensor, lens: Tensor, attn_sink: Tensor, out: Tensor, *, scale: float
) -> Tensor:
    """Attend to the listed workspace rows; K and V are the same row.

    Shapes: q bf16 [T, H, 512], kv bf16 [S, 512], indices i32 [T, K] (negative: none; >= S raises in checked
    mode and counts as none otherwise), lens i32 [T], attn_sink f32 [H], out bf16 [T, H, 512] (written) -> lse
    f32 [T, H] as `sparse_decode`.
    """
    if q.dtype != kv.dtype:
        raise OpArgumentError(NAME, "kv", f"{q.dtype}, like q", str(kv.dtype))
    lse = attn_sink.new_empty(q.shape[0], q.shape[1])
    keys = attn_sink.new_empty(indices.shape[1], q.shape[2])
    before = indices.new_empty(0)
    for t, rows in enumerate(listed(indices, lens, kv.shape[0])):
        # Lists that begin as the one before, as in a layer of ratio 128, have those rows loaded already.
        same = int((rows[: len(before)] == before[: len(rows)]).cumprod(0).sum())
        keys[same : len(rows)] = kv.index_select(0, rows[same:])
        attend(q[t], keys[: len(rows)], attn_sink, scale, out[t], lse[t])
        before = rows
    return lse
