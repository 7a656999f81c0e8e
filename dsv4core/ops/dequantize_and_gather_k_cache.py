"""Read the last rows of each request out of its pages into a dense bf16 workspace."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.ops._contract import ACTIVATION, I32, page, spec
from dsv4core.ops._op import op
from dsv4core.ops._rows import ints, page_layout
from dsv4core.slots import table_slots

NAME = "dequantize_and_gather_k_cache"


def _fake(
    out: Tensor, k_cache: Tensor, seq_lens: Tensor, gather_lens: Tensor | None, block_table: Tensor, *,
    rows: int, offset: int, layout: str,
) -> None:  # fmt: skip
    return None


@op(
    fake=_fake,
    mutates=("out",),
    tensors={
        "out": spec("R M 512", *ACTIVATION, finite=False),
        "k_cache": page(),
        "seq_lens": spec("R", I32, strides="any"),
        "gather_lens": spec("R", I32, strides="any", optional=True),
        "block_table": spec("R W", I32, strides="any"),
    },
)
def dequantize_and_gather_k_cache(
    out: Tensor, k_cache: Tensor, seq_lens: Tensor, gather_lens: Tensor | None, block_table: Tensor, *,
    rows: int, offset: int, layout: str,
) -> None:  # fmt: skip
    """Dequantise rows seq_len - g .. seq_len - 1 of every request into out[b, offset : offset + g].

    Shapes: out bf16 [R, M, 512] (written, only those rows), k_cache u8 [N, B], seq_lens i32 [R] counted in
    rows of this cache, gather_lens g i32 [R] or None for all, block_table i32 [R, W] (-1: unmapped, never
    read). Exact: e4m3 times a power of two fits bf16.
    """
    # Everything is checked before the first row is written.
    source = page_layout(NAME, layout, rows=rows, pages=k_cache, families=("main",))
    lens = ints(seq_lens)
    counts = lens if gather_lens is None else ints(gather_lens)
    parts: list[Tensor] = []
    for b, (length, count) in enumerate(zip(lens, counts, strict=True)):
        if count > length or count < 0 or offset < 0 or offset + count > out.shape[1]:
            raise OpArgumentError(
                NAME,
                "gather_lens",
                f"0 <= g <= seq_len {length} and offset {offset} + g <= {out.shape[1]}",
                f"{count} at [{b}]",
            )
        index = torch.arange(length - count, length, device=out.device)
        slots = table_slots(block_table, torch.full_like(index, b), index, rows)
        outside = (slots < 0) | (slots >= k_cache.shape[0] * rows)
        if bool(outside.any()):
            hole = int(index[outside][0])
            raise OpArgumentError(
                NAME,
                "block_table",
                f"a page of this cache for row {hole} of request {b}",
                "-1, a narrower table or a page behind it",
            )
        parts.append(slots)
    for b, slots in enumerate(parts):
        source.load(out[b, offset : offset + slots.shape[0]], k_cache, slots, rows)
