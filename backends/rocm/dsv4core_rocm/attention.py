"""DeepSeek-V4 attention on an AMD device."""

from __future__ import annotations

from typing import Any

import torch

from dsv4core.ops import BoundOp
from dsv4core.ops_attention import OpsAttention
from dsv4core.providers import Ranked


class DeepseekV4ROCMAttention(OpsAttention):
    """Decode and prefill through the ops, or by a provider that is faster because nobody asks for sums.

    The layer has no use for the log of the softmax's sum that `sparse_decode` and `sparse_prefill` return;
    aiter's prefill cannot give it, and its decode only at the price of a second pass.
    """

    def attend_pages(self, *args: Any, **kwargs: Any) -> None:
        """`sparse_decode` without its result."""
        _without_sums(self.ops.sparse_decode, args, kwargs)

    def attend_rows(self, *args: Any, **kwargs: Any) -> None:
        """`sparse_prefill` without its result."""
        _without_sums(self.ops.sparse_prefill, args, kwargs)


def _without_sums(op: BoundOp, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    ranked = op.implementation
    if not isinstance(ranked, Ranked) or torch.compiler.is_compiling():
        op(*args, **kwargs)
        return
    ranked.without_sums(op.checked(args, kwargs))
