"""Read the last rows of each request out of its pages into a dense bf16 workspace."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.kernels.triton._early import start_early
from dsv4core.kernels.triton._launch import (
    alignment,
    launch,
    pieces,
    supported,
    value_checks,
)
from dsv4core.kernels.triton._pages import MAIN, load_main_rows, store_as
from dsv4core.kernels.triton._table import refuse_holes, table_rows
from dsv4core.kernels.triton._tuning import native_e4m3, tuned

NAME = "dequantize_and_gather_k_cache"


@triton.jit(
    do_not_specialize=["room", "width", "pages", "offset", "table_stride", "seq_lens", "gather_lens", "table"]
)
def dequantize_and_gather_kernel(
    out, cache, seq_lens, gather_lens, table, room, width, pages, offset,
    request_stride, row_stride, page_stride, seq_stride, gather_stride, table_stride, column_stride,
    rows: tl.constexpr, LAYOUT: tl.constexpr, ALIGN: tl.constexpr, HARDWARE: tl.constexpr, ROWS: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """Program (i, b) dequantises rows i * ROWS .. of request b; those behind its count do nothing."""
    start_early(EARLY)
    b = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * ROWS
    length = tl.load(seq_lens + b * seq_stride)
    count = tl.minimum(tl.load(gather_lens + b * gather_stride), room)
    if first < count:
        i = first + tl.arange(0, ROWS)
        live = i < count
        page, row = table_rows(
            table, b, length - count + i, live, width, table_stride, column_stride, rows
        )  # fmt: skip
        found = (page >= 0) & (page < pages)
        page = tl.where(found, page, 0)
        nope, tail = load_main_rows(cache, page_stride, page, row, found, rows, LAYOUT, ALIGN, HARDWARE)
        d = tl.arange(0, 512)[None, :]
        j = tl.arange(0, 64)[None, :]
        target = out + b * request_stride + (offset + i).to(tl.int64)[:, None] * row_stride
        store_as(target + d, nope, live[:, None] & (d < 448))
        store_as(target + 448 + j, tail, live[:, None] & (j < 64))


def dequantize_and_gather_k_cache(
    out: Tensor, k_cache: Tensor, seq_lens: Tensor, gather_lens: Tensor | None, block_table: Tensor, *,
    rows: int, offset: int, layout: str,
) -> None:  # fmt: skip
    """Dequantise rows seq_len - g .. seq_len - 1 of every request into out[b, offset : offset + g].

    Shapes: out bf16 [R, M, 512] (written, only those rows), k_cache u8 [N, B], seq_lens i32 [R], gather_lens
    i32 [R] or None for all, block_table i32 [R, W]. Unchecked, a row without a page reads as zeros.
    """
    supported(NAME, "layout", layout, MAIN)
    lens = seq_lens if gather_lens is None else gather_lens
    if value_checks(out):
        _check(out, k_cache, seq_lens, lens, block_table, rows, offset)
    requests, room = out.shape[0], out.shape[1] - offset
    meta = tuned("dequantize_and_gather", out)
    grid = (pieces(max(room, 0), meta["ROWS"]), requests)
    launch(
        dequantize_and_gather_kernel, grid, out, out, k_cache, seq_lens, lens, block_table, room,
        block_table.shape[1], k_cache.shape[0], offset, out.stride(0), out.stride(1), k_cache.stride(0),
        seq_lens.stride(0), lens.stride(0), block_table.stride(0), block_table.stride(1),
        rows=rows, LAYOUT=layout, ALIGN=alignment(k_cache), HARDWARE=native_e4m3(out), **meta,
    )  # fmt: skip


def _check(
    out: Tensor, cache: Tensor, seq_lens: Tensor, lens: Tensor, table: Tensor, rows: int, offset: int
) -> None:
    """Checked mode: counts fit their sequence and the workspace, and every row read has a page."""
    bad = (lens > seq_lens) | (lens < 0) | (lens + offset > out.shape[1])
    if bool(bad.any()):
        b = int(bad.nonzero()[0])
        expected = f"0 <= g <= seq_len {int(seq_lens[b])} and offset {offset} + g <= {out.shape[1]}"
        raise OpArgumentError(NAME, "gather_lens", expected, f"{int(lens[b])} at [{b}]")
    if not lens.numel():
        return
    i = torch.arange(int(lens.max()), device=out.device)
    index = (seq_lens - lens).long().unsqueeze(1) + i
    request = torch.arange(lens.shape[0], device=out.device).unsqueeze(1)
    wanted = i < lens.unsqueeze(1)
    refuse_holes(NAME, table, request, index, wanted, rows, cache.shape[0], "a page of this cache")
