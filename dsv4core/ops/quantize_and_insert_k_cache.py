"""Write already rotated key rows into pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dsv4core.ops._contract import ACTIVATION, I64, check_range, page, spec
from dsv4core.ops._op import op
from dsv4core.ops._rows import live_rows, page_layout

NAME = "quantize_and_insert_k_cache"


def _fake(k: Tensor, k_cache: Tensor, slot_mapping: Tensor, *, rows: int, layout: str) -> None:
    return None


def _values(a: Mapping[str, Any], dims: Mapping[str, int]) -> None:
    check_range(NAME, "slot_mapping", a["slot_mapping"], -(2**63), dims["N"] * a["rows"], "slots")


@op(
    fake=_fake,
    mutates=("k_cache",),
    values=_values,
    tensors={
        "k": spec("T 512", *ACTIVATION),
        "k_cache": page(),
        "slot_mapping": spec("<=T", I64, strides="any"),
    },
)
def quantize_and_insert_k_cache(
    k: Tensor, k_cache: Tensor, slot_mapping: Tensor, *, rows: int, layout: str
) -> None:
    """Quantise one rotated key row per slot and write it into its page.

    Shapes: k bf16 [T, 512], k_cache u8 [N, B] (written), slot_mapping i64 [<= T]: its length says how many
    rows there are (rows of k behind it are padding), a negative slot skips. Source: CA1 rules 7-9.
    """
    target = page_layout(NAME, layout, rows=rows, pages=k_cache, families=("main",))
    live, slots = live_rows(slot_mapping)
    target.write(k_cache, slots, target.encode(k.index_select(0, live)), rows)
