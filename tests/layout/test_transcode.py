"""Pages from one layout to another: lossless where it can be, as a writer would make them, or refused."""

import pytest
import torch

from dsv4core.errors import LayoutError
from dsv4core.layout import conversion, get_layout, layouts, transcode
from dsv4core.layout._shortcuts import SHORTCUTS
from dsv4core.numerics.hadamard import hadamard128

IDS = [layout.id for layout in layouts() if layout.width is not None]
ROWS = 8

# The whole table: S same, E exact, W as a writer, c checked, - refused.
TABLE = """
                        mla  fnuz bf16 row8 f32 | fp8  x4   hf32 fp4  fp4h f32
fp8_ds_mla              S    E    E    c    E   | -    -    -    -    -    -
fp8_ds_mla_fnuz         E    S    E    c    E   | -    -    -    -    -    -
bf16_row                W    W    S    W    E   | -    -    -    -    -    -
fp8_row                 E    E    E    S    E   | -    -    -    -    -    -
f32_row                 W    W    W    W    S   | -    -    -    -    -    -
index_fp8               -    -    -    -    -   | S    E    -    c    -    E
index_fp8_ue8m0x4       -    -    -    -    -   | E    S    -    c    -    E
index_fp8_hadamard_f32  -    -    -    -    -   | -    -    S    -    c    -
index_mxfp4             -    -    -    -    -   | c    c    -    S    -    E
index_mxfp4_hadamard    -    -    -    -    -   | -    -    c    -    S    -
index_f32               -    -    -    -    -   | W    W    W    W    W    S
"""
COLUMNS = [
    "fp8_ds_mla",
    "fp8_ds_mla_fnuz",
    "bf16_row",
    "fp8_row",
    "f32_row",
    "index_fp8",
    "index_fp8_ue8m0x4",
    "index_fp8_hadamard_f32",
    "index_mxfp4",
    "index_mxfp4_hadamard",
    "index_f32",
]
LETTERS = {"same": "S", "exact": "E", "writes": "W", "checked": "c"}
KINDS = {
    (line.split()[0], dst): letter
    for line in TABLE.strip().splitlines()[1:]
    for dst, letter in zip(COLUMNS, line.replace("|", " ").split()[1:], strict=True)
}
PAIRS = [pair for pair, letter in KINDS.items() if letter != "-"]


def rows_for(layout_id, count=4, seed=0, scale=1.0):
    """f32 rows of many magnitudes with zeros of both signs, values that bf16 holds; moderate for fp8_row."""
    layout = get_layout(layout_id)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, ROWS, layout.width, generator=generator)
    if layout_id != "fp8_row":
        spread = torch.randint(-20, 20, (count, ROWS, layout.width // 32), generator=generator)
        x *= torch.exp2(spread.float()).repeat_interleave(32, -1)
    x[0, 1, ::3] = 0
    x[0, 2, ::5] = -0.0
    x[0, 3, :64] = 0
    x[1, 0] = x[1, 0].sign() * 2.0 ** -torch.arange(layout.width).remainder(12)
    return (x * scale).bfloat16().float()


def pages_of(layout_id, seed=0):
    layout = get_layout(layout_id)
    return layout.encode_pages(rows_for(layout_id, seed=seed))


def general(monkeypatch):
    """Only the general way."""
    for pair in list(SHORTCUTS):
        monkeypatch.delitem(SHORTCUTS, pair)


def test_the_table_covers_every_pair():
    assert set(KINDS) == {(a, b) for a in IDS for b in IDS}


@pytest.mark.parametrize("src", IDS)
@pytest.mark.parametrize("dst", IDS)
def test_kinds(src, dst):
    if KINDS[src, dst] == "-":
        with pytest.raises(LayoutError, match=f"transcode from '{src}' to '{dst}': one holds"):
            conversion(src, dst)
        with pytest.raises(LayoutError, match="one holds"):
            transcode(pages_of(src), src, dst, rows=ROWS)
    else:
        assert LETTERS[conversion(src, dst)] == KINDS[src, dst]


@pytest.mark.parametrize(("src", "dst"), [p for p in PAIRS if KINDS[p] in "SE"])
def test_exact_pairs_keep_every_value(src, dst):
    a, b = get_layout(src), get_layout(dst)
    pages = pages_of(src)
    got = transcode(pages, src, dst, rows=ROWS)
    assert got.shape == (4, b.page_bytes(ROWS)) and got.dtype == torch.uint8
    assert torch.equal(b.decode_pages(got, ROWS).float(), a.decode_pages(pages, ROWS).float())
    if KINDS[src, dst] == "S":
        assert torch.equal(got, pages)


BOTH_WAYS = [(src, dst) for src, dst in PAIRS if KINDS[src, dst] == "E" and KINDS[dst, src] in "EW"]


@pytest.mark.parametrize(("src", "dst"), BOTH_WAYS)
def test_there_and_back_is_the_same_page(src, dst):
    pages = pages_of(src)
    back = transcode(transcode(pages, src, dst, rows=ROWS), dst, src, rows=ROWS)
    layout = get_layout(src)
    assert torch.equal(layout.decode_pages(back, ROWS), layout.decode_pages(pages, ROWS))


@pytest.mark.parametrize(("src", "dst"), [p for p in PAIRS if KINDS[p] == "W"])
def test_unquantised_rows_become_the_pages_of_a_writer(src, dst):
    x = rows_for(src)
    if dst == "fp8_row":
        x = rows_for("fp8_row")
    pages = get_layout(src).encode_pages(x)
    rotated = hadamard128(x.bfloat16()).float() if get_layout(dst).rotate == "hadamard" else x
    want = get_layout(dst).encode_pages(rotated)
    assert torch.equal(transcode(pages, src, dst, rows=ROWS), want)


def test_dialects_of_fp8_convert_to_the_bytes_of_their_writer():
    x = rows_for("fp8_ds_mla", count=40)
    ocp, fnuz = (get_layout(i).encode_pages(x) for i in ("fp8_ds_mla", "fp8_ds_mla_fnuz"))
    assert torch.equal(transcode(ocp, "fp8_ds_mla", "fp8_ds_mla_fnuz", rows=ROWS), fnuz)
    back = transcode(fnuz, "fp8_ds_mla_fnuz", "fp8_ds_mla", rows=ROWS)
    assert torch.equal(torch.where(ocp == 0x80, 0, ocp), torch.where(back == 0x80, 0, back))
    packed = get_layout("index_fp8_ue8m0x4").encode_pages(rows_for("index_fp8"))
    assert torch.equal(transcode(pages_of("index_fp8"), "index_fp8", "index_fp8_ue8m0x4", rows=ROWS), packed)


@pytest.mark.parametrize(("src", "dst"), list(SHORTCUTS))
def test_shortcuts_equal_the_general_way(src, dst, monkeypatch):
    pages = pages_of(src, seed=3)
    quick = transcode(pages, src, dst, rows=ROWS)
    general(monkeypatch)
    slow = transcode(pages, src, dst, rows=ROWS)
    decode = get_layout(dst).decode_pages
    assert torch.equal(decode(quick, ROWS).float(), decode(slow, ROWS).float())
    if KINDS[src, dst] == "W" or get_layout(dst).block is None:
        assert torch.equal(quick, slow)


@pytest.mark.parametrize("src", ["fp8_ds_mla", "fp8_ds_mla_fnuz"])
def test_every_code_at_every_scale(src):
    """All 254 legal codes times all scale bytes that a writer can make, to bf16 and to the other dialect."""
    layout = get_layout(src)
    low, high = (105, 247) if src == "fp8_ds_mla" else (106, 247)
    codes = torch.tensor([c for c in range(256) if c & 0x7F != 0x7F and (c != 0x80 or low == 105)])
    codes = torch.nn.functional.pad(codes, (0, 448 - len(codes)), value=1).to(torch.uint8)
    record = torch.zeros(high - low + 1, layout.record_bytes, dtype=torch.uint8)
    record[:, :448] = codes
    record[:, 576:583] = torch.arange(low, high + 1).to(torch.uint8)[:, None]
    pages = torch.zeros(1, layout.page_bytes(len(record)), dtype=torch.uint8)
    layout.write(pages, torch.arange(len(record)), record, len(record))
    want = layout.decode(record).float()
    keep = want.isfinite().all(dim=-1)  # 448 * 2^120 is beyond f32
    assert int(keep.sum()) >= 142
    other = "fp8_ds_mla_fnuz" if src == "fp8_ds_mla" else "fp8_ds_mla"
    for dst in ("bf16_row", "f32_row", other):
        got = transcode(pages, src, dst, rows=len(record))
        assert torch.equal(get_layout(dst).decode_pages(got, len(record))[0].float()[keep], want[keep])


def test_every_bf16_value_through_the_writer_shortcut():
    bits = torch.arange(0x10000, dtype=torch.int32)
    x = bits[(bits & 0x7F80) != 0x7F80].to(torch.int16).view(torch.bfloat16)
    page = torch.zeros(len(x) // 64, 512, dtype=torch.bfloat16)
    page[:, :64] = x.view(-1, 64)  # blocks of neighbours
    page[:, 64:128] = x.view(64, -1).T.flatten().view(-1, 64)  # blocks over the whole range
    page[:, 448:] = x.view(-1, 64)
    page = (
        page.view(-1, ROWS, 512)
        if len(page) % ROWS == 0
        else page[: len(page) // ROWS * ROWS].view(-1, ROWS, 512)
    )
    pages = page.view(torch.uint8).flatten(1)
    want = get_layout("fp8_ds_mla").encode_pages(page)
    got = transcode(pages, "bf16_row", "fp8_ds_mla", rows=ROWS)
    fresh = (page.view(torch.int16) == 0).all(-1)
    assert torch.equal(
        get_layout("fp8_ds_mla").decode_pages(got, ROWS), get_layout("fp8_ds_mla").decode_pages(want, ROWS)
    )
    assert not fresh.any() and torch.equal(got, want)


@pytest.mark.parametrize(("src", "dst"), PAIRS)
def test_fresh_rows_stay_fresh(src, dst):
    pages = torch.zeros(3, get_layout(src).page_bytes(ROWS), dtype=torch.uint8)
    assert not transcode(pages, src, dst, rows=ROWS).any()


@pytest.mark.parametrize(
    ("src", "dst"),
    [
        ("fp8_ds_mla", "bf16_row"),
        ("index_fp8", "index_fp8_ue8m0x4"),
        ("bf16_row", "bf16_row"),
        ("index_mxfp4", "index_f32"),
    ],
)
@pytest.mark.parametrize("dst_rows", [1, 3, 16, 64])
def test_other_page_sizes_keep_slots(src, dst, dst_rows):
    pages = pages_of(src)
    got = transcode(pages, src, dst, rows=ROWS, dst_rows=dst_rows)
    assert got.shape == (-(-32 // dst_rows), get_layout(dst).page_bytes(dst_rows))
    slots = torch.arange(32)
    same = transcode(pages, src, dst, rows=ROWS)
    assert torch.equal(get_layout(dst).read(got, slots, dst_rows), get_layout(dst).read(same, slots, ROWS))


@pytest.mark.parametrize(
    ("src", "dst"),
    [
        ("fp8_ds_mla", "bf16_row"),
        ("bf16_row", "fp8_ds_mla"),
        ("fp8_ds_mla", "fp8_ds_mla_fnuz"),
        ("index_fp8", "index_f32"),
        ("bf16_row", "f32_row"),
    ],
)
@pytest.mark.parametrize(("base", "gap"), [(0, 0), (1, 3), (4, 64)])
def test_pages_inside_a_larger_allocation(src, dst, base, gap):
    pages, size, target = pages_of(src), get_layout(src).page_bytes(ROWS), get_layout(dst).page_bytes(ROWS)
    storage = torch.full((base + 4 * (size + gap),), 0xA5, dtype=torch.uint8)
    inside = storage.as_strided((4, size), (size + gap, 1), base)
    inside.copy_(pages)
    want = transcode(pages, src, dst, rows=ROWS)
    assert torch.equal(transcode(inside, src, dst, rows=ROWS), want)
    room = torch.full((base + 4 * (target + gap),), 0xA5, dtype=torch.uint8)
    out = room.as_strided((4, target), (target + gap, 1), base)
    assert transcode(inside, src, dst, rows=ROWS, out=out) is out
    payload = ROWS * get_layout(dst).record_bytes
    assert torch.equal(out[:, :payload], want[:, :payload])
    out[:, :payload] = 0xA5
    assert (room == 0xA5).sum() >= room.numel() - 4 * ROWS * 4, "only live rows' bytes were written"


def test_more_pages_than_a_chunk(monkeypatch):
    pages = pages_of("fp8_ds_mla").repeat(5, 1)
    want = transcode(pages, "fp8_ds_mla", "bf16_row", rows=ROWS)
    monkeypatch.setattr("dsv4core.layout._transcode.CHUNK_BYTES", 3 * ROWS * 584)
    assert torch.equal(transcode(pages, "fp8_ds_mla", "bf16_row", rows=ROWS), want)
    assert torch.equal(transcode(pages, "fp8_ds_mla", "bf16_row", rows=ROWS, dst_rows=ROWS), want)
    assert transcode(pages[:0], "fp8_ds_mla", "bf16_row", rows=ROWS).shape == (0, 8192)


def test_states():
    state = get_layout("state_f32").sized(256)
    pages = state.encode_pages(torch.randn(3, 4, 512))
    assert torch.equal(transcode(pages, state, state, rows=4), pages)
    with pytest.raises(LayoutError, match="fingerprints differ"):
        transcode(pages, state, get_layout("state_f32").sized(512), rows=4)
    with pytest.raises(LayoutError, match="one holds state rows, the other index rows"):
        transcode(pages, state, "index_f32", rows=4)
    with pytest.raises(LayoutError, match="no width yet"):
        transcode(pages, "state_f32", "state_f32", rows=4)


@pytest.mark.parametrize(("src", "dst"), [p for p in PAIRS if KINDS[p] == "c"])
def test_a_second_quantisation_is_refused_by_the_value(src, dst):
    with pytest.raises(
        LayoutError, match=rf"slot \d+ holds .* which '{dst}' would store as .*not quantised again"
    ):
        transcode(pages_of(src), src, dst, rows=ROWS)


def test_checked_pairs_pass_where_the_values_fit():
    x = (torch.arange(128).remainder(8) - 3.5).repeat(2, ROWS, 1) * 0.5  # in e2m1 and in e4m3
    pages = get_layout("index_mxfp4").encode_pages(
        torch.tensor([0.5, -1, 1.5, 2, -3, 4, 6, 0]).repeat(2, ROWS, 16)
    )
    got = transcode(pages, "index_mxfp4", "index_fp8", rows=ROWS)
    assert torch.equal(
        get_layout("index_fp8").decode_pages(got, ROWS), get_layout("index_mxfp4").decode_pages(pages, ROWS)
    )
    assert x.shape == (2, ROWS, 128)


@pytest.mark.parametrize(
    ("src", "byte", "message"),
    [
        ("fp8_ds_mla", 0x7F, "holds nan"),
        ("fp8_ds_mla", 0xFF, "holds nan"),
        ("fp8_ds_mla_fnuz", 0x80, "holds nan"),
        ("fp8_row", 0x7F, "holds nan"),
    ],
)
def test_nan_codes_are_named(src, byte, message):
    pages = pages_of(src)
    pages[1, get_layout(src).row_offset(2) + 7] = byte
    for dst in {"fp8_ds_mla", "fp8_ds_mla_fnuz", "bf16_row", "f32_row"} - {src}:
        with pytest.raises(LayoutError, match=rf"slot {ROWS + 2} {message} in channel 7"):
            transcode(pages, src, dst, rows=ROWS)


def test_240_of_fnuz_and_odd_scales():
    pages = get_layout("fp8_ds_mla_fnuz").encode_pages(torch.full((1, ROWS, 512), 224.0))
    pages[0, 5] = 0x7F  # 240, which no writer makes; beside 224 it still fits OCP
    got = transcode(pages, "fp8_ds_mla_fnuz", "fp8_ds_mla", rows=ROWS)
    assert get_layout("fp8_ds_mla").decode_pages(got, ROWS)[0, 0, 5] == 240
    keys = pages_of("index_fp8")
    keys[0, ROWS * 128 : ROWS * 128 + 4].view(torch.float32)[0] = 0.3
    with pytest.raises(LayoutError, match="slot 0 holds"):
        transcode(keys, "index_fp8", "index_fp8_ue8m0x4", rows=ROWS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 0}, "at least 1"),
        ({"dst_rows": 0}, "page of 0 rows"),
        ({"dst_rows": -3}, "page of -3 rows"),
        ({"rows": 65}, "needs pages u8"),
        ({"dst": "bf16"}, "does not exist"),
        ({"src": "fp8"}, "does not exist"),
        ({"pages": torch.zeros(2, 9)}, "needs pages u8"),
        ({"out": torch.zeros(3, 8192, dtype=torch.uint8)}, "out has 3 pages, the result has 4"),
        ({"out": torch.zeros(4, 99, dtype=torch.uint8)}, "needs pages u8"),
    ],
)
def test_bad_arguments(change, message):
    call = {"pages": pages_of("fp8_ds_mla"), "src": "fp8_ds_mla", "dst": "bf16_row", "rows": ROWS, **change}
    with pytest.raises(LayoutError, match=message):
        transcode(call.pop("pages"), call.pop("src"), call.pop("dst"), **call)
