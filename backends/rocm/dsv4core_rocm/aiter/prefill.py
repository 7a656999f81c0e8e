"""`sparse_prefill` through aiter's `pa_sparse_prefill_opus`, gfx950; it returns no sums, so layers only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dsv4core.providers import Answer, Call, Provider
from dsv4core_rocm.aiter import lists
from dsv4core_rocm.aiter.decode import BUFFER, reach
from dsv4core_rocm.gfx import Gfx


@dataclass(frozen=True)
class Prefill:
    """The adapter for one device."""

    gfx: Gfx
    function: Callable[..., Any]

    def supports(self, call: Call) -> Answer:
        """True, or what does not fit."""
        q, kv, out = call["q"], call["kv"], call["out"]
        if self.gfx.name != "gfx950":
            return (
                f"aiter's prefill kernel is built for gfx950, this is {self.gfx.name}"
                " (its portable one takes the sinks for a truth value)"
            )
        if q.dtype != torch.bfloat16 or out.dtype != torch.bfloat16:
            return f"aiter prefills bf16 queries, these are {q.dtype}"
        if not q.shape[0] or not kv.shape[0]:
            return "there is no query or no key"
        if not q.is_contiguous() or not out.is_contiguous():
            return "queries and output have to be contiguous: aiter writes with the queries' strides"
        largest = 2 * max(reach(q), reach(kv))
        if largest >= BUFFER:
            return f"queries or keys take {largest} bytes, 32-bit offsets reach {BUFFER}"
        return True

    def direct(self, call: Call) -> None:
        """Write the output. All keys are the first source; the second one is empty."""
        q, kv = call["q"], call["kv"]
        indices, indptr = lists.ragged(call["indices"], call["lens"], kv.shape[0])
        none = indices.new_zeros(0)
        self.function(
            q, kv, indices, indptr, kv, none, torch.zeros_like(indptr),
            call["attn_sink"].clamp(-lists.NEVER, lists.NEVER), call["scale"], out=call["out"],
        )  # fmt: skip


def provider(gfx: Gfx, function: Callable[..., Any]) -> Provider:
    """aiter's prefill as a provider of the layer's half of `sparse_prefill`."""
    prefill = Prefill(gfx, function)
    return Provider("aiter pa_sparse_prefill_opus", 10, prefill.supports, None, prefill.direct)
