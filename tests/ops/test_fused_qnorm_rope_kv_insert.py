"""Query norm and rotation, and the window rows, bit for bit with everything around them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from op_reference import MAIN, Pages, angles, array, bf16, rms_norm, rope, same, tensor_bf16

from dsv4core.errors import OpArgumentError

TABLE = angles(300)
SLOTS = [5, -1, 130, 0, -7, 63, 64, -(2**62), 66]


def call(ops, q, kv, positions, pages: Pages, slots, *, heads: int, layout: str | None = None):
    return ops.fused_qnorm_rope_kv_insert(
        q, kv, positions, torch.from_numpy(TABLE), pages.tensor, torch.tensor(slots, dtype=torch.int64),
        rows=pages.rows, layout=layout or pages.layout, eps=1e-6, padded_heads=heads,
    )  # fmt: skip


def expected_q(q: torch.Tensor, positions: torch.Tensor) -> np.ndarray:
    return rope(rms_norm(array(q), None, 1e-6), TABLE[positions.numpy()][:, None])


@pytest.mark.parametrize("layout", MAIN)
@pytest.mark.parametrize(("rows", "lead", "gap"), [(64, 0, 0), (64, 129, 77), (2, 4096, 576)])
def test_bits(ops, rng, layout: str, rows: int, lead: int, gap: int) -> None:
    q = tensor_bf16(rng.standard_normal((11, 3, 512)) * np.exp2(rng.integers(-20, 9, (11, 3, 1))))
    kv = tensor_bf16(rng.standard_normal((11, 520)) * np.exp2(rng.integers(-20, 9, (11, 1))))[:, 8:]
    positions = torch.from_numpy(rng.integers(0, 300, 11))
    pages = Pages(layout, 67, rows, lead=lead, gap=gap)
    got = call(ops, q, kv, positions, pages, SLOTS, heads=8)
    same(got[:, :3], bf16(expected_q(q, positions)))
    assert got.shape == (11, 8, 512) and not got[:, 3:].view(torch.int16).any()
    rotated = rope(array(kv), TABLE[positions.numpy()])
    for t, slot in enumerate(SLOTS):
        if slot >= 0:
            pages.put(slot, rotated[t])
    pages.check()


def test_f32_rows_are_not_rounded_in_profile_math(ops, rng) -> None:
    q, kv = (torch.from_numpy(rng.standard_normal(s).astype(np.float32)) for s in ((2, 4, 512), (2, 512)))
    positions = torch.tensor([9, 299])
    pages = Pages("f32_row", 2, 64)
    same(call(ops, q, kv, positions, pages, [3, 64], heads=4), expected_q(q, positions))
    for t, slot in enumerate((3, 64)):
        pages.put(slot, rope(kv.numpy(), TABLE[positions.numpy()])[t])
    pages.check()


def test_column_sliced_queries_and_strided_positions(ops, rng) -> None:
    wide = tensor_bf16(rng.standard_normal((5, 6, 520)))
    positions = torch.arange(10)[::2]
    pages, again = Pages("fp8_ds_mla", 1, 64), Pages("fp8_ds_mla", 1, 64)
    kv = wide[:, 0, :512]
    a = call(ops, wide[:, 2:5, 3:515], kv, positions, pages, [1, 2], heads=3)
    b = call(ops, wide[:, 2:5, 3:515].clone(), kv.clone(), positions.clone(), again, [1, 2], heads=3)
    assert torch.equal(a, b) and torch.equal(pages.store, again.store)


def test_rows_behind_slot_mapping_and_no_tokens(ops, rng) -> None:
    q, kv = tensor_bf16(rng.standard_normal((4, 2, 512))), tensor_bf16(rng.standard_normal((4, 512)))
    pages = Pages("fp8_ds_mla", 1, 64)
    got = call(ops, q, kv, torch.arange(4), pages, [], heads=2)
    same(got, bf16(expected_q(q, torch.arange(4))))
    assert call(ops, q[:0], kv[:0], torch.arange(0), pages, [], heads=2).shape == (0, 2, 512)
    pages.check()


def test_refusals(ops, rng) -> None:
    q, kv = tensor_bf16(rng.standard_normal((2, 2, 512))), tensor_bf16(rng.standard_normal((2, 512)))
    pages = Pages("fp8_ds_mla", 2, 64)
    for argument, slots, positions, heads, layout in [
        ("slot_mapping", [0, 128], [0, 1], 2, None),
        ("slot_mapping", [0, 1, 2], [0, 1], 2, None),
        ("positions", [0, 1], [0, 300], 2, None),
        ("positions", [0, 1], [-1, 0], 2, None),
        ("padded_heads", [0, 1], [0, 1], 1, None),
        ("layout", [0, 1], [0, 1], 2, "index_fp8"),
    ]:
        with pytest.raises(OpArgumentError) as caught:
            call(ops, q, kv, torch.tensor(positions), pages, slots, heads=heads, layout=layout)
        assert caught.value.argument == argument
    pages.check()
