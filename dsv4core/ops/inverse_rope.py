"""Turn the attention output back to position 0 (K = V carries the rotation into it)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dsv4core.numerics.rope import rotate_tail
from dsv4core.ops._contract import ACTIVATION, F32, I64, check_range, spec
from dsv4core.ops._op import op

NAME = "inverse_rope"


def _fake(o: Tensor, positions: Tensor, cos_sin: Tensor) -> Tensor:
    return o.new_empty(o.shape)


def _values(a: Mapping[str, Any], dims: Mapping[str, int]) -> None:
    check_range(NAME, "positions", a["positions"], 0, dims["P"], "positions")


@op(
    fake=_fake,
    values=_values,
    tensors={
        "o": spec("T H 512", *ACTIVATION),
        "positions": spec("T", I64, strides="any"),
        "cos_sin": spec("P 64", F32, finite=False),
    },
)
def inverse_rope(o: Tensor, positions: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotate the last 64 channels of every head backwards by the query's position; one rounding.

    Shapes: o bf16 [T, H, 512], positions i64 [T], cos_sin f32 [P, 64] -> bf16 [T, H, 512]. Source: CA1 rule
    5.
    """
    return rotate_tail(o, cos_sin[positions].unsqueeze(1), inverse=True)
