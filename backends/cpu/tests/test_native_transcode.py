"""Native page conversion against the torch one: equal bytes and errors, nothing written beside the rows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from native_world import INDEX, MAIN, World
from torch import Tensor

from dsv4core.errors import LayoutError
from dsv4core.layout import CacheLayout, conversion, get_layout, layouts, native_pages, transcode
from dsv4core_cpu.backend import CpuBackend
from dsv4core_cpu.native import Native
from dsv4core_cpu.transcode import converter

ROWS = 7
IDS = (*MAIN, *INDEX)


def allowed(a: str, b: str) -> bool:
    try:
        conversion(a, b)
    except LayoutError:
        return False
    return True


PAIRS = [(a, b) for a in IDS for b in IDS if allowed(a, b)]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = native_pages.find("cpu")
    yield
    native_pages.register("cpu", before)


def within(pages: Tensor, base: int, gap: int) -> Tensor:
    """The same pages in a larger allocation."""
    count, size = pages.shape
    room = torch.full((base + count * (size + gap) + 64,), 0xA5, dtype=torch.uint8)
    inside = room.as_strided((count, size), (size + gap, 1), base)
    inside.copy_(pages)
    return inside


def run(
    pages: Tensor, a: str | CacheLayout, b: str | CacheLayout, rows: int, out: Tensor | None, dst_rows: int
):
    """The result and its whole allocation, or the error."""
    try:
        made = transcode(pages, a, b, rows=rows, dst_rows=dst_rows, out=out)
    except LayoutError as error:
        return str(error), None
    return made, None if out is None else out.as_strided((out.untyped_storage().nbytes(),), (1,), 0)


def compare(
    native: Native, pages: Tensor, a: str, b: str, *, rows: int = ROWS, dst_rows: int = ROWS, place=(0, 0)
):
    """Both ways on the same pages: into fresh memory, and into pages of a larger allocation."""
    target, count = get_layout(b), -(-pages.shape[0] * rows // dst_rows)
    results = []
    for convert in (None, converter(native)):
        native_pages.register("cpu", convert)
        rooms = [
            None,
            within(torch.full((count, target.page_bytes(dst_rows)), 0xA5, dtype=torch.uint8), *place),
        ]
        results.append([run(within(pages, *place), a, b, rows, room, dst_rows) for room in rooms])
    for (slow, around), (quick, beside) in zip(*results, strict=True):
        assert type(slow) is type(quick)
        if isinstance(slow, str):
            assert slow == quick
            continue
        assert torch.equal(slow, quick)
        if around is not None:
            assert torch.equal(around, beside), "bytes beside the rows"
    return results[1][0][0]


def ordinary(layout: str, seed: int, count: int = 5) -> Tensor:
    w, found = World(seed), get_layout(layout)
    return found.encode_pages(w.values(count, ROWS, found.values, dtype=torch.float32))


def fitting(layout: str, seed: int, count: int = 5) -> Tensor:
    """Values of one fraction bit in a narrow range, some rows fresh or zero: checked pairs can keep them."""
    w, found = World(seed), get_layout(layout)
    shape = (count, ROWS, found.values)
    x = torch.tensor([0.0, -0.0, 1.0, -1.5, 2.0, 3.0, -4.0, 6.0])[w.ints(0, 8, *shape)]
    x[..., :32] = x[..., :32].sign() * 6.0
    pages = found.encode_pages(x * torch.exp2(w.ints(-2, 3, count, ROWS, 1).float()))
    fresh = w.ints(0, 3, count, ROWS) == 0
    for part in found.parts(pages, ROWS):
        part[fresh] = 0
    return pages


def noise(layout: str, seed: int, count: int = 5) -> Tensor:
    return World(seed).ints(0, 256, count, get_layout(layout).page_bytes(ROWS)).to(torch.uint8)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", [ordinary, fitting, noise])
@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_equal_bytes_and_errors(native: Native, a: str, b: str, make, seed: int) -> None:
    place = [(0, 0), (64, 192), (3, 5)][seed]
    compare(native, make(a, seed), a, b, place=place)
    compare(native, make(a, seed + 10), a, b, dst_rows=(1, 3, 64)[seed], place=place)


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_one_strange_row_leaves_its_chunk_to_torch(native: Native, a: str, b: str, monkeypatch) -> None:
    """A byte of a row becomes a special one, in the middle of pages that fit."""
    found = get_layout(a)
    monkeypatch.setattr("dsv4core.layout._transcode.CHUNK_BYTES", 2 * ROWS * found.record_bytes)
    clean = fitting(a, 5)
    places = [found.row_offset(3) + i for i in (0, found.row_bytes * 2 // 3, found.row_bytes - 1)]
    places += [found.tail_offset(ROWS, 3) + i for i in range(found.tail_bytes)][::3]
    for at in places:
        for byte in (0x00, 0x01, 0x7F, 0x80, 0xFF):
            pages = clean.clone()
            pages[2, at] = byte
            compare(native, pages, a, b)


@pytest.mark.parametrize("a", [i for i in IDS if get_layout(i).tail_bytes])
def test_every_scale_byte(native: Native, a: str) -> None:
    found = get_layout(a)
    for codes in (0, 1):
        pages = torch.zeros(37, found.page_bytes(ROWS), dtype=torch.uint8)
        front, tail = found.parts(pages, ROWS)
        front[...] = codes
        tail[...] = torch.arange(37 * ROWS).remainder(256).to(torch.uint8).view(37, ROWS, 1)
        for b in (b for source, b in PAIRS if source == a):
            for page in pages.split(1):
                compare(native, page, a, b)


@pytest.mark.parametrize("a", ["bf16_row", "f32_row", "index_f32"])
def test_every_bf16_value(native: Native, a: str) -> None:
    """Finite ones, in blocks of neighbours and in blocks over the whole range; then ties of the codes."""
    found, width = get_layout(a), get_layout(a).values
    bits = torch.arange(0x10000, dtype=torch.int32)
    x = bits[(bits & 0x7F80) != 0x7F80].to(torch.int16).view(torch.bfloat16).float()
    wide = torch.stack((x, x * (1 + 2.0**-9), x * (1 + 2.0**-8), x * (1 - 2.0**-9))).clamp(-3.3e38, 3.3e38)
    for grouped in (wide.view(-1, width), wide.view(width, -1).T):
        rows = grouped[: len(grouped) // 8 * 8].reshape(-1, 8, width)
        pages = found.encode_pages(rows.contiguous())
        for b in (b for source, b in PAIRS if source == a):
            compare(native, pages[: len(pages) // 2], a, b, rows=8, dst_rows=8)  # without the largest of all
            compare(native, pages[-4:], a, b, rows=8, dst_rows=8)


@pytest.mark.parametrize("a", ["fp8_ds_mla", "fp8_ds_mla_fnuz", "fp8_row", "index_fp8", "index_fp8_ue8m0x4"])
def test_every_code(native: Native, a: str) -> None:
    """All legal codes at all scales of a writer."""
    found = get_layout(a)
    codes = torch.tensor([c for c in range(256) if c & 0x7F != 0x7F and (c != 0x80 or "fnuz" not in a)])
    scales = list(range(105, 248)) if found.tail_bytes else [0]
    record = torch.zeros(len(scales), 4, found.record_bytes, dtype=torch.uint8)
    width = 448 if "mla" in a else found.values
    for i in range(4):
        record[:, i, :width] = codes.roll(64 * i)[torch.arange(width) % len(codes)].to(torch.uint8)
    for i, byte in enumerate(scales):
        if a == "index_fp8":
            scale = torch.tensor([2.0 ** (byte - 127)]).view(torch.uint8)
            record[i, :, found.row_bytes :] = scale
        elif found.tail_bytes:
            record[i, :, found.row_bytes : found.row_bytes + (7 if "mla" in a else 4)] = byte
    pages = torch.zeros(len(scales), found.page_bytes(4), dtype=torch.uint8)
    found.write(pages, torch.arange(4 * len(scales)), record.flatten(0, 1), 4)
    for b in (b for source, b in PAIRS if source == a):
        for page in pages.split(20):
            compare(native, page, a, b, rows=4, dst_rows=4)


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_large_results_on_two_threads(native: Native, a: str, b: str) -> None:
    """Large enough to go past the caches: pages repeated convert to results repeated."""
    small, target = fitting(a, 3, count=12), get_layout(b)
    native_pages.register("cpu", None)
    want = run(small, a, b, ROWS, None, ROWS)[0]
    if isinstance(want, str):
        return  # nothing fits
    times = -(-(9 << 20) // want.numel())
    torch.set_num_threads(2)
    native_pages.register("cpu", converter(native))
    pages, slots = within(small.repeat(times, 1), 16, 48), torch.arange(0, 12 * ROWS * times, 97)
    got = transcode(pages, a, b, rows=ROWS)
    assert torch.equal(got, want.repeat(times, 1))
    other = transcode(pages, a, b, rows=ROWS, dst_rows=5)
    assert torch.equal(target.read(other, slots, 5), target.read(got, slots, ROWS))


def test_states(native: Native) -> None:
    state = get_layout("state_f32").sized(24)
    pages = World(1).ints(0, 256, 5, state.page_bytes(ROWS)).to(torch.uint8)
    for dst_rows in (ROWS, 2, 64):
        native_pages.register("cpu", None)
        want = transcode(pages, state, state, rows=ROWS, dst_rows=dst_rows)
        native_pages.register("cpu", converter(native))
        assert torch.equal(transcode(pages, state, state, rows=ROWS, dst_rows=dst_rows), want)


def test_no_pages_at_all(native: Native) -> None:
    for a, b in PAIRS:
        compare(native, ordinary(a, 0)[:0], a, b)


def test_pages_of_one_row_shared_by_all(native: Native) -> None:
    """An expanded source has stride 0; an expanded result is torch's business, which refuses it."""
    page = ordinary("fp8_ds_mla", 1, count=1)
    native_pages.register("cpu", converter(native))
    got = transcode(page.expand(4, -1), "fp8_ds_mla", "bf16_row", rows=ROWS)
    native_pages.register("cpu", None)
    assert torch.equal(got, transcode(page.repeat(4, 1), "fp8_ds_mla", "bf16_row", rows=ROWS))


def test_other_tensors_and_other_layouts_are_left_to_torch(native: Native) -> None:
    convert = converter(native)
    a, b = get_layout("fp8_ds_mla"), get_layout("bf16_row")
    pages = ordinary("fp8_ds_mla", 2)
    out = torch.zeros(5, b.page_bytes(ROWS), dtype=torch.uint8)
    assert convert(pages, a, ROWS, out, b, ROWS, 1) == []
    assert convert(torch.nn.Parameter(pages, requires_grad=False), a, ROWS, out, b, ROWS, 1) is None
    assert convert(pages, a, ROWS, out[:1].expand(5, -1), b, ROWS, 1) is None
    assert convert(pages, a.model_copy(update={"version": 2}), ROWS, out, b, ROWS, 1) is None


def test_the_backend_registers_what_its_settings_say() -> None:
    CpuBackend({"native": "off"})
    assert native_pages.find("cpu") is None
    if CpuBackend({}).native is not None:
        assert native_pages.find("cpu") is not None
    CpuBackend({"native": "off"})
    assert native_pages.find("cpu") is None and native_pages.find("cuda") is None


def test_every_layout_is_looked_at() -> None:
    assert {layout.id for layout in layouts() if layout.width is not None} == set(IDS)
