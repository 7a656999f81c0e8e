"""Access by slot: exactly the record's bytes, whatever the allocation around the pages looks like."""

import pytest
import torch

from dsv4core.errors import LayoutError
from dsv4core.layout import get_layout

IDS = [
    "fp8_ds_mla",
    "fp8_ds_mla_fnuz",
    "fp8_row",
    "index_fp8",
    "index_fp8_ue8m0x4",
    "index_fp8_hadamard_f32",
    "index_mxfp4",
    "bf16_row",
    "f32_row",
    "index_f32",
    "state_f32",
]


def layout_of(layout_id):
    return get_layout("state_f32").sized(256) if layout_id == "state_f32" else get_layout(layout_id)


def random_bytes(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.int32).to(torch.uint8)


def expected(pages, layout, rows, slots, record):
    """Byte by byte from the offsets, on a copy."""
    want = pages.clone()
    for slot, data in zip(slots.tolist(), record, strict=True):
        page, row = divmod(slot, rows)
        front, tail = layout.row_offset(row), layout.tail_offset(rows, row)
        want[page, front : front + layout.row_bytes] = data[: layout.row_bytes]
        want[page, tail : tail + layout.tail_bytes] = data[layout.row_bytes :]
    return want


@pytest.mark.parametrize("layout_id", IDS)
@pytest.mark.parametrize("rows", [1, 2, 5, 64])
def test_write_touches_exactly_the_record(layout_id, rows):
    layout = layout_of(layout_id)
    pages = random_bytes(6, layout.page_bytes(rows))
    slots = torch.randperm(6 * rows)[: 3 * rows]
    record = random_bytes(3 * rows, layout.record_bytes)
    want = expected(pages, layout, rows, slots, record)
    layout.write(pages, slots, record, rows)
    assert torch.equal(pages, want)
    assert torch.equal(layout.read(pages, slots, rows), record)


@pytest.mark.parametrize("layout_id", IDS)
def test_a_single_row_of_a_wider_tensor(layout_id):
    layout = layout_of(layout_id)
    pages = random_bytes(2, layout.page_bytes(4))
    record = random_bytes(3, layout.record_bytes + 5)[1:2, 3 : 3 + layout.record_bytes]
    slots = torch.tensor([6])
    want = expected(pages, layout, 4, slots, record)
    layout.write(pages, slots, record, 4)
    assert torch.equal(pages, want)
    assert torch.equal(layout.read(pages, slots, 4), record)
    assert torch.equal(layout.read(pages[1:2], slots - 4, 4), record)


@pytest.mark.parametrize("layout_id", IDS)
@pytest.mark.parametrize(("base", "gap"), [(0, 0), (576, 1152), (4, 4), (2, 6), (1, 3)])
def test_pages_inside_a_larger_allocation(layout_id, base, gap):
    layout, rows, count = layout_of(layout_id), 4, 5
    size = layout.page_bytes(rows)
    stride = size + gap
    storage = random_bytes(base + count * stride)
    before = storage.clone()
    pages = storage.as_strided((count, size), (stride, 1), base)
    slots = torch.tensor([0, 7, 19, 13])
    record = random_bytes(4, layout.record_bytes)
    want = expected(pages, layout, rows, slots, record)
    layout.write(pages, slots, record, rows)
    assert torch.equal(pages, want)
    assert torch.equal(layout.read(pages, slots, rows), record)
    outside = torch.ones_like(storage, dtype=torch.bool)
    outside.as_strided((count, size), (stride, 1), base)[:] = False
    assert torch.equal(storage[outside], before[outside])


@pytest.mark.parametrize("layout_id", IDS)
def test_encode_pages_equals_write_by_slot(layout_id):
    layout, rows = layout_of(layout_id), 6
    values = torch.randn(3, rows, layout.values)
    whole = layout.encode_pages(values)
    by_slot = torch.zeros_like(whole)
    layout.write(by_slot, torch.arange(3 * rows), layout.encode(values).flatten(0, 1), rows)
    assert torch.equal(whole, by_slot)
    assert torch.equal(layout.decode_pages(whole, rows), layout.decode(layout.encode(values)))
    roomy = torch.full((3, whole.shape[1] + 11), 7, dtype=torch.uint8)
    roomy[:, : whole.shape[1]] = whole
    assert torch.equal(layout.decode_pages(roomy, rows), layout.decode_pages(whole, rows))


def test_slots_of_any_shape_and_integer_type():
    layout = get_layout("fp8_ds_mla")
    pages = random_bytes(4, layout.page_bytes(64))
    slots = torch.randint(0, 256, (3, 5))
    flat = layout.read(pages, slots.flatten(), 64)
    assert torch.equal(layout.read(pages, slots, 64), flat.view(3, 5, 584))
    assert torch.equal(layout.read(pages, slots.int(), 64), flat.view(3, 5, 584))
    assert layout.read(pages, slots[:0], 64).shape == (0, 5, 584)
    layout.write(pages, slots.flatten()[:0].int(), flat[:0], 64)
    assert layout.read(pages[:0], slots[:0], 64).shape == (0, 5, 584)


def test_addresses_beyond_32_bits():
    layout, rows = get_layout("fp8_ds_mla"), 2
    stride = 3 * 2**30
    size = layout.page_bytes(rows)
    try:
        # Untouched memory of this allocation is never backed by real pages.
        storage = torch.empty(2 * stride + size, dtype=torch.uint8)
    except RuntimeError:
        pytest.skip("no address space for 6 GiB")
    pages = storage.as_strided((3, size), (stride, 1))
    record = random_bytes(2, 584)
    layout.write(pages, torch.tensor([5, 2]), record, rows)
    assert torch.equal(layout.read(pages, torch.tensor([5, 2]), rows), record)
    assert torch.equal(storage[2 * stride + 576 : 2 * stride + 1152], record[0, :576])


@pytest.mark.parametrize(
    ("pages", "message"),
    [
        (torch.zeros(2, 37375, dtype=torch.uint8), r"needs pages u8 \[N, 37440\].*got uint8 \[2, 37375\]"),
        (torch.zeros(2, 64, 584, dtype=torch.uint8), r"got uint8 \[2, 64, 584\]"),
        (torch.zeros(2, 37440, dtype=torch.int8), "got int8"),
        (torch.zeros(2, 2 * 37440, dtype=torch.uint8)[:, ::2], r"adjacent \(stride\(1\) = 1\)"),
    ],
)
def test_wrong_pages_are_refused(pages, message):
    with pytest.raises(LayoutError, match=message):
        get_layout("fp8_ds_mla").read(pages, torch.zeros(1, dtype=torch.int64), 64)


@pytest.mark.parametrize("slots", [[3, -5], [3, 128]])
def test_slots_outside_of_the_pages_are_refused(slots):
    layout = get_layout("fp8_ds_mla")
    pages = random_bytes(2, layout.page_bytes(64))
    before = pages.clone()
    words = rf"2 pages of 64 rows, slots 0 to 127; got slots from {min(slots)} to {max(slots)}"
    with pytest.raises(LayoutError, match=words):
        layout.write(pages, torch.tensor(slots), random_bytes(2, layout.record_bytes), 64)
    assert torch.equal(pages, before)


def test_wrong_records_are_refused():
    layout = get_layout("index_fp8")
    pages = torch.zeros(1, layout.page_bytes(64), dtype=torch.uint8)
    slots = torch.arange(3)
    good = torch.zeros(3, 132, dtype=torch.uint8)
    for record in (good[:2], good[:, :128], good.float()):
        with pytest.raises(LayoutError, match=r"writes records u8 \[3, 132\]"):
            layout.write(pages, slots, record, 64)
    assert not pages.any()
