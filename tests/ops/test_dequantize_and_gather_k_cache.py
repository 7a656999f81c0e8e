"""Rows out of pages into a workspace of which nothing else may change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from op_reference import MAIN, Pages, same

from dsv4core.errors import OpArgumentError

LENS = {64: ([130, 0, 64, 1, 65], [128, 0, 1, 1, 65]), 2: ([7, 0, 2, 1, 3], [5, 0, 1, 1, 3])}


def world(rng, layout: str, rows: int, **place: int) -> tuple[Pages, torch.Tensor]:
    pages = Pages(layout, 20, rows, **place)
    for slot in range(20 * rows):
        pages.fill(slot, (rng.standard_normal(512) * 2.0 ** rng.integers(-9, 9)).astype(np.float32))
    table = rng.permutation(20).astype(np.int32)[:20].reshape(4, 5).T  # not contiguous: requests in columns
    return pages, torch.from_numpy(table)


def i32(x: list[int]) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.int32)


@pytest.mark.parametrize("layout", MAIN)
@pytest.mark.parametrize(("rows", "lead", "gap"), [(64, 0, 0), (2, 131, 61)])
@pytest.mark.parametrize("whole", [False, True])
def test_bits(ops, rng, layout: str, rows: int, lead: int, gap: int, whole: bool) -> None:
    pages, table = world(rng, layout, rows, lead=lead, gap=gap)
    dtype = torch.float32 if layout == "f32_row" else torch.bfloat16
    seq, gather = LENS[rows]
    out = torch.full((5, 140, 515), 7.5, dtype=dtype)[..., 2:514]
    expected = np.full((5, 140, 512), 7.5, np.float32)
    counts = seq if whole else gather
    for b in range(5):
        for i in range(counts[b]):
            p = seq[b] - counts[b] + i
            expected[b, 3 + i] = pages.get(int(table[b, p // rows]) * rows + p % rows)
    ops.dequantize_and_gather_k_cache(
        out, pages.tensor, i32(seq), None if whole else i32(gather), table, rows=rows, offset=3, layout=layout
    )
    same(out, expected)
    pages.check()


def test_every_code_and_scale_byte_is_exact(ops) -> None:
    rows = np.zeros((254, 512), np.float32)
    pages = Pages("fp8_ds_mla", 4, 64)
    codes = np.delete(np.arange(256), [0x7F, 0xFF]).astype(np.uint8)
    for slot in range(254):
        pages.put(slot, rows[slot])
        front, tail = pages.spans(slot)
        pages.expected[front.start : front.start + 254] = codes
        pages.expected[tail] = [slot + 1] * 7 + [0]
    pages.store.copy_(torch.from_numpy(pages.expected))
    out = torch.zeros(1, 254, 512, dtype=torch.bfloat16)
    ops.dequantize_and_gather_k_cache(
        out, pages.tensor, i32([254]), None, i32([[0, 1, 2, 3]]), rows=64, offset=0, layout="fp8_ds_mla"
    )
    for slot in range(6, 247):  # outside, a code times the scale leaves bf16
        same(out[0, slot], pages.get(slot))
    assert not out.isnan().any()


def test_unmapped_and_unread_columns_are_never_followed(ops, rng) -> None:
    pages, table = world(rng, "bf16_row", 64)
    table = table.clone()
    table[0, 0] = -1  # rows before the gathered ones
    table[1:, :] = 2**30  # of requests with nothing to gather
    out = torch.zeros(5, 4, 512, dtype=torch.bfloat16)
    ops.dequantize_and_gather_k_cache(
        out,
        pages.tensor,
        i32([66, 0, 0, 0, 0]),
        i32([2, 0, 0, 0, 0]),
        table,
        rows=64,
        offset=1,
        layout="bf16_row",
    )
    same(out[0, 1:3], np.stack([pages.get(int(table[0, 1]) * 64 + i) for i in range(2)]))
    assert not out[0, ::3].any() and not out[1:].any()


def test_refusals_and_no_requests(ops, rng) -> None:
    pages, table = world(rng, "fp8_ds_mla", 2)
    out = torch.zeros(1, 4, 512, dtype=torch.bfloat16)
    for seq, gather, entry, argument in [
        (3, 4, 0, "gather_lens"), (3, -1, 0, "gather_lens"), (8, 5, 0, "gather_lens"),
        (2, 2, -1, "block_table"), (11, 1, 0, "block_table"), (2, 2, 20, "block_table"),
    ]:  # fmt: skip
        with pytest.raises(OpArgumentError) as caught:
            ops.dequantize_and_gather_k_cache(
                out, pages.tensor, i32([seq]), i32([gather]), torch.full((1, 4), entry, dtype=torch.int32),
                rows=2, offset=0, layout="fp8_ds_mla",
            )  # fmt: skip
        assert caught.value.argument == argument, (seq, gather, entry)
    ops.dequantize_and_gather_k_cache(
        out[:0], pages.tensor, i32([]), None, table[:0], rows=2, offset=0, layout="fp8_ds_mla"
    )
    assert not out.any()
