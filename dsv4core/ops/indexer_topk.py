"""Choose the k best entries of every token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.ops._contract import F32, I32, check_range, spec
from dsv4core.ops._op import op
from dsv4core.ops._rows import blocks
from dsv4core.ops._select import select

NAME = "indexer_topk"
CELLS = 1 << 23


def _fake(logits: Tensor, context_lens: Tensor, *, k: int) -> Tensor:
    return context_lens.new_empty(logits.shape[0], k)


def _values(a: Mapping[str, Any], dims: Mapping[str, int]) -> None:
    check_range(NAME, "context_lens", a["context_lens"], 0, dims["L"] + 1, "lengths")
    logits = a["logits"]
    if bool(logits.isnan().any()):  # behind a context anything may stand
        column = torch.arange(dims["L"], device=logits.device)
        bad = (logits.isnan() & (column < a["context_lens"].unsqueeze(1))).nonzero()
        if bad.shape[0]:
            raise OpArgumentError(NAME, "logits", "numbers before context_lens", f"nan at {bad[0].tolist()}")


@op(
    fake=_fake,
    values=_values,
    tensors={"logits": spec("T L", F32, finite=False), "context_lens": spec("T", I32, strides="any")},
)
def indexer_topk(logits: Tensor, context_lens: Tensor, *, k: int) -> Tensor:
    """The k best of the first context_lens[t] logits, ascending; ties to the lower index (-0 and +0 tie).

    Shapes: logits f32 [T, L] (cells at and behind context_lens are never read into a result; a NaN before it
    raises in checked mode), context_lens i32 [T] -> i32 [T, k], -1 behind the last choice.
    """
    if k < 1:
        raise OpArgumentError(NAME, "k", ">= 1", str(k))
    tokens, width = logits.shape
    out = torch.full((tokens, k), -1, dtype=torch.int32, device=logits.device)
    column = torch.arange(width, dtype=torch.int32, device=logits.device)
    for part in blocks(tokens, CELLS // max(width, 1)):
        indices = torch.where(column < context_lens[part].unsqueeze(1), column, -1)
        out[part] = select(logits[part], indices, k)[0]
    return out
