"""Arguments of `compressed_slot_mapping`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dsv4core_conformance.inputs import pages as memory
from dsv4core_conformance.inputs.numbers import Numbers, integers
from dsv4core_conformance.inputs.tokens import step_tokens


def make(
    *, lengths: Sequence[int] = (21, 9, 300), starts: Sequence[int] | None = None, ratio: int = 4,
    rows: int = 64, short: int = 0, holes: bool = False, unmapped: bool = False, seed: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """Tokens `start` .. `length - 1` of every request; the last `short` tokens have no slot."""
    source = Numbers(seed)
    position, request = step_tokens(lengths, starts)
    table = memory.block_table(
        source, [n // ratio for n in lengths], rows, sum(n // ratio // rows + 1 for n in lengths)
    )
    if unmapped:
        table[-1] = -1
    own = source.permutation(len(position) + 7)[: len(position)]
    if holes:
        own[ratio - 1 :: 2 * ratio] = -1
        own[1::5] = -9
    return {
        "positions": integers(position),
        "slot_mapping": integers(own[: len(own) - short]),
        "token_to_req": integers(request, torch.int32),
        "block_table": table,
        "ratio": ratio,
        "rows": rows,
    }
