"""Rows into pages: every byte of the allocation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from op_reference import MAIN, Pages, tensor_bf16

from dsv4core.errors import OpArgumentError

# UE8M0 scales (docs/arithmetic.md, rule 7): block amax -> scale byte, floor on amax.
VECTORS = [(0.0, 105), (1e-4, 105), (0.02734375, 113), (1.0, 119), (7.0, 121), (7.03125, 122), (448.0, 127),
           (450.0, 128), (3.3895313892515355e38, 247)]  # fmt: skip


def call(ops, k: torch.Tensor, pages: Pages, slots: list[int]) -> None:
    slot_mapping = torch.tensor(slots, dtype=torch.int64)
    ops.quantize_and_insert_k_cache(k, pages.tensor, slot_mapping, rows=pages.rows, layout=pages.layout)


@pytest.mark.parametrize("layout", MAIN)
@pytest.mark.parametrize(
    ("rows", "lead", "gap"), [(64, 0, 0), (64, 1, 3), (2, 576, 1000), (1, 0, 1), (7, 3, 0)]
)
def test_bits(ops, rng, layout: str, rows: int, lead: int, gap: int) -> None:
    k = tensor_bf16(rng.standard_normal((40, 512)) * np.exp2(rng.integers(-30, 20, (40, 1))))
    k[2, :64] = 0
    k[2, 64:128] = -0.0
    pages = Pages(layout, -(-100 // rows), rows, lead=lead, gap=gap)
    slots = rng.permutation(100)[:33]
    slots[rng.permutation(33)[:9]] = [-1, -2, -1, -(2**63), -100, -64, -1, -3, -1]
    call(ops, k, pages, slots.tolist())
    for t, slot in enumerate(slots):
        if slot >= 0:
            pages.put(int(slot), k[t].float().numpy())
    pages.check()


@pytest.mark.parametrize(("amax", "byte"), VECTORS)
def test_scale_vectors(ops, amax: float, byte: int) -> None:
    k = torch.zeros(1, 512, dtype=torch.bfloat16)
    k[0, 5::64] = -amax
    pages = Pages("fp8_ds_mla", 1, 64)
    call(ops, k, pages, [9])
    assert pages.tensor[0, 64 * 576 + 72 : 64 * 576 + 80].tolist() == [byte] * 7 + [0]


def test_every_bf16_amax_in_one_go(ops) -> None:
    amax = torch.arange(0, 0x7F80, dtype=torch.int16).view(torch.bfloat16)
    amax = torch.nn.functional.pad(amax, (0, -len(amax) % 7)).view(-1, 7)
    k = torch.zeros(len(amax), 512, dtype=torch.bfloat16)
    k[:, :448] = amax.repeat_interleave(64, 1)
    k[:, 1:448:64] *= -0.37
    pages = Pages("fp8_ds_mla", -(-len(k) // 64), 64)
    call(ops, k, pages, list(range(len(k))))
    scales = pages.tensor[:, 64 * 576 :][:, :512].reshape(-1, 8)[: len(k)]
    m, e = np.frexp(np.maximum(amax.float().numpy(), np.float32(1e-4)))
    assert (scales[:, :7].numpy() == e - 9 + (m > 0.875) + 127).all() and not scales[:, 7].any()
    for t in range(0, len(k), 97):
        front, tail = pages.spans(t)
        pages.put(t, k[t].float().numpy())
        assert (pages.store.numpy()[front] == pages.expected[front]).all()
        assert (pages.store.numpy()[tail] == pages.expected[tail]).all()


def test_ties_subnormals_and_saturation(ops) -> None:
    # The largest value of the block fixes the exponent at 0: the others are ties and subnormals.
    ladder = [
        448.0, 432.0, 440.0, 17.0, 19.0, -17.0, 2**-9, 2**-10, 1.5 * 2**-9, 2.5 * 2**-9,
        -(2.0**-11), 0.0, -0.0,
    ]  # fmt: skip
    k = torch.zeros(1, 512, dtype=torch.bfloat16)
    k[0, : len(ladder)] = torch.tensor(ladder)
    pages = Pages("fp8_ds_mla", 1, 2)
    call(ops, k, pages, [1])
    assert pages.tensor[0, 576 : 576 + len(ladder)].tolist() == [
        0x7E, 0x7E, 0x7E, 0x58, 0x5A, 0xD8, 1, 0, 2, 2, 0x80, 0, 0x80,
    ]  # fmt: skip


def test_page_stride_beyond_32_bits(ops, rng) -> None:
    stride = 2**31 + 4160
    store = torch.empty(2 * stride + 37440, dtype=torch.uint8)  # never touched, so never resident
    pages = store.as_strided((3, 37440), (stride, 1), 0)
    pages[2].zero_()
    k = tensor_bf16(rng.standard_normal((1, 512)))
    ops.quantize_and_insert_k_cache(k, pages, torch.tensor([2 * 64 + 1]), rows=64, layout="fp8_ds_mla")
    small = Pages("fp8_ds_mla", 1, 64)
    call(ops, k, small, [1])
    assert torch.equal(pages[2, 576:1152], small.tensor[0, 576:1152])
    out = torch.zeros(1, 1, 512, dtype=torch.bfloat16)
    lens, table = torch.tensor([2], dtype=torch.int32), torch.tensor([[2]], dtype=torch.int32)
    ops.dequantize_and_gather_k_cache(
        out, pages, lens, torch.ones_like(lens), table, rows=64, offset=0, layout="fp8_ds_mla"
    )
    small.expected = small.store.numpy()
    assert (out[0, 0].float().numpy() == small.get(1)).all()


def test_short_lists_and_refusals(ops, rng, monkeypatch) -> None:
    k = tensor_bf16(rng.standard_normal((3, 512)))
    pages = Pages("fp8_ds_mla", 2, 64)
    call(ops, k, pages, [])
    call(ops, k[:0], pages, [])
    for slots in ([128], [0, 2**40], [1, 2, 3, 4]):
        with pytest.raises(OpArgumentError, match="slot_mapping"):
            call(ops, k, pages, slots)
    k[1, 3] = torch.inf
    with pytest.raises(OpArgumentError, match=r"k.*inf at \[1, 3\]"):
        call(ops, k, pages, [1, 2])
    pages.check()
    monkeypatch.setenv("DSV4CORE_CHECK", "0")
    k[1, 200], k[1, 500] = torch.nan, -torch.inf
    call(ops, k, pages, [1, 2])
    assert np.isfinite(pages.get(2)).all()
    scales = pages.store.numpy()[pages.spans(2)[1]]
    assert ((scales[:7] > 0) & (scales[:7] < 255)).all()
