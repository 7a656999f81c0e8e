"""Choose the k best entries of every token."""

from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.kernels.triton._select import select

NAME = "indexer_topk"


def indexer_topk(logits: Tensor, context_lens: Tensor, *, k: int) -> Tensor:
    """The k best of the first context_lens[t] logits, ascending; ties to the lower index (-0 and +0 tie).

    Shapes: logits f32 [T, L], context_lens i32 [T] -> i32 [T, k], -1 behind the last choice.
    """
    if k < 1:
        raise OpArgumentError(NAME, "k", ">= 1", str(k))
    out = context_lens.new_empty(logits.shape[0], k)
    select(logits, context_lens, out, count=logits.shape[1])
    return out
