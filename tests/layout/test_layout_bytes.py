"""`layout show ID --hex` names every byte of a page; `layout guess` finds its layout or says it cannot."""

import json
import os
import threading

import pytest
import torch

from dsv4core.cli import main
from dsv4core.errors import LayoutError
from dsv4core.layout import get_layout, layouts
from dsv4core.layout.dump import pieces
from dsv4core.layout.guess import SAME_BYTES, guess

IDS = [layout.id for layout in layouts()]
STATES = [(1024, 4), (512, 8), (256, 4)]


def sized(layout_id, width=1024):
    layout = get_layout(layout_id)
    return layout.sized(width) if layout.width is None else layout


def pages_of(layout, rows, count=1, seed=0, kind="plain"):
    """Rows like those of a model, or with a magnitude of their own each, or with outlier channels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, rows, layout.values, generator=generator)
    if kind == "spread":
        x *= torch.exp2(torch.randn(count, rows, 1, generator=generator))
    if kind == "outliers":
        x[..., ::40] *= 8
    return layout.encode_pages(x if layout.plain_f32 else x.bfloat16())


def dump_file(tmp_path, pages, name="pages.bin"):
    path = tmp_path / name
    path.write_bytes(pages.numpy().tobytes())
    return str(path)


def call(capsys, *argv):
    code = main(["layout", *argv])
    out = capsys.readouterr()
    return code, out.out, out.err


# show --hex


@pytest.mark.parametrize("layout_id", IDS)
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_every_byte_is_named_once_with_its_value(tmp_path, capsys, layout_id, rows):
    layout = sized(layout_id)
    pages = pages_of(layout, rows, count=2)
    path = dump_file(tmp_path, pages)
    code, text, _ = call(
        capsys, "show", layout_id, "--hex", path, "--rows", str(rows), "--page", "1", "--json"
    )
    assert code == 0
    report = json.loads(text)
    assert report["fingerprint"] == layout.fingerprint and report["file_bytes"] == pages.numel()
    rebuilt = torch.full_like(pages[1], 0xEE)
    values = {}
    for piece in report["fields"]:
        data = bytes.fromhex(piece["data"])
        where = slice(piece["offset"], piece["offset"] + len(data))
        assert (rebuilt[where] == 0xEE).all() or 0xEE in data
        rebuilt[where] = torch.tensor(list(data), dtype=torch.uint8)
        if piece["field"] not in ("scale", "scale_pad", "(padding)"):
            for channel, value in zip(range(piece["first"], piece["last"] + 1), piece["values"], strict=True):
                values[piece["row"], channel] = value
    payload = rows * layout.record_bytes
    assert torch.equal(rebuilt[:payload], pages[1, :payload])
    decoded = layout.decode_pages(pages, rows)[1]
    assert values == {(r, c): float(decoded[r, c]) for r in range(rows) for c in range(layout.values)}


def test_text_of_a_page(tmp_path, capsys):
    layout = get_layout("fp8_ds_mla")
    page = layout.encode_pages(torch.full((1, 2, 512), 1.5))
    page[0, 576 + 3] = 0x7F
    page[0, 2 * 576 + 1] = 0
    page[0, 2 * 576 + 7] = 9
    page[0, -1] = 1
    code, out, _ = call(capsys, "show", "fp8_ds_mla", "--hex", dump_file(tmp_path, page), "--rows", "2")
    lines = out.splitlines()
    assert code == 0
    assert "page 0 of 2 rows" in lines[0]
    notes = [line for line in lines if line.startswith("note: ")]
    assert "note: 1 values are NaN or infinite: garbage, or another layout" in notes
    assert "note: 1 scale bytes are 0 or 255, which readers disagree on" in notes
    assert "note: 1 pad bytes are not 0" in notes
    assert "note: 1 bytes of the padding are not 0; nobody reads them" in notes
    assert (
        "       0    0  nope[0..7]       7c7c7c7c7c7c7c7c                  1.5 1.5 1.5 1.5 1.5 1.5 1.5 1.5"
        in lines
    )
    assert (
        "    1160    1  scale[0..6]      77777777777777                    " + " ".join(["0.00390625"] * 7)
        in lines
    )
    assert "    1167    1  scale_pad[0]     00                                0" in lines
    assert any(
        line.startswith("    1168") and "(padding)" in line and "560 bytes, never written" in line
        for line in lines
    )
    _, one, _ = call(
        capsys, "show", "fp8_ds_mla", "--hex", dump_file(tmp_path, page), "--rows", "2", "--row", "1"
    )
    assert "  nope[0..7]" in one and " 576    1  nope" in one and "       0    0" not in one


def test_odd_scales_and_fresh_rows_are_remarked(tmp_path, capsys):
    packed = pages_of(get_layout("index_fp8_ue8m0x4"), 4)
    packed[0, 4 * 128 + 2] += 1
    _, out, _ = call(capsys, "show", "index_fp8_ue8m0x4", "--hex", dump_file(tmp_path, packed), "--rows", "4")
    assert "note: the four scale bytes of a row differ; the first one was used" in out
    plain = pages_of(get_layout("index_fp8_hadamard_f32"), 4)
    plain[0, :128], plain[0, 512:516] = 0, 0
    _, out, _ = call(capsys, "show", "index_fp8", "--hex", dump_file(tmp_path, plain), "--rows", "4")
    assert "note: 3 f32 scales are no powers of two, as those of index_fp8 are" in out
    assert "note: 1 of 4 rows are all zero: not written" in out


def test_hex_text_is_understood(tmp_path, capsys):
    page = pages_of(get_layout("index_mxfp4"), 2)
    text = page.numpy().tobytes().hex("\n", 30)
    (tmp_path / "page.txt").write_text(text + "\n")
    raw = call(capsys, "show", "index_mxfp4", "--rows", "2", "--hex", dump_file(tmp_path, page))
    assert call(capsys, "show", "index_mxfp4", "--rows", "2", "--hex", str(tmp_path / "page.txt")) == raw
    assert call(capsys, "guess", str(tmp_path / "page.txt"))[0] == 0


def test_a_page_without_its_padding_is_enough(tmp_path, capsys):
    page = pages_of(get_layout("fp8_ds_mla"), 2)[:, :1168]
    code, out, _ = call(capsys, "show", "fp8_ds_mla", "--hex", dump_file(tmp_path, page), "--rows", "2")
    assert code == 0 and "(padding)" not in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--page", "1"], "page 1 of 64 rows needs 37376 bytes from byte 37440 on"),
        (["--page", "-1"], "pages count from 0"),
        (["--row", "64"], "rows are 0 to 63"),
        (["--row", "-1"], "rows are 0 to 63"),
        (["--rows", "65"], "needs 37960 bytes"),
        (["--rows", "0"], "at least 1"),
        (["--rows", "20000"], "has 11680128 bytes; at most"),
        (["--rows", "99999999999999"], "at most"),
        (["--page", "99999999999999999999"], "needs 37376 bytes"),
    ],
)
def test_bad_requests(tmp_path, capsys, argv, message):
    path = dump_file(tmp_path, pages_of(get_layout("fp8_ds_mla"), 64))
    code, out, err = call(capsys, "show", "fp8_ds_mla", "--hex", path, *argv)
    assert (code, out) == (2, "")
    assert err.startswith("dsv4core layout: ")
    assert any(part in err for part in message.split("|")), err


def test_hostile_files(tmp_path, capsys):
    fifo, huge, odd = tmp_path / "fifo", tmp_path / "huge", tmp_path / "odd"
    os.mkfifo(fifo)
    with huge.open("wb") as stream:
        stream.truncate(1 << 40)  # sparse
    odd.write_text("abc")
    (tmp_path / "mixed").write_text("ab cd" * 2000 + "no hex")
    (tmp_path / "empty").write_bytes(b"")
    for name, message in [
        ("fifo", "no regular file"),
        ("", "no regular file"),
        ("missing", "cannot be read"),
        ("empty", "is empty"),
        ("odd", "begins like hex text but is none"),
        ("mixed", "begins like hex text but is none"),
    ]:
        for argv in (["guess", str(tmp_path / name)], ["show", "bf16_row", "--hex", str(tmp_path / name)]):
            done = []
            thread = threading.Thread(
                target=lambda argv=argv, done=done: done.append(call(capsys, *argv)), daemon=True
            )
            thread.start()
            thread.join(20)
            assert done and done[0][0] == 2 and message in done[0][2], (name, done)
    code, out, _ = call(capsys, "guess", str(huge))
    assert code == 0 and "every byte looked at is 0" in out
    code, out, _ = call(capsys, "show", "bf16_row", "--hex", str(huge), "--page", "1000", "--rows", "1")
    assert code == 0 and "1 of 1 rows are all zero" in out


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_never_crash(tmp_path, capsys, seed):
    generator = torch.Generator().manual_seed(seed)
    size = [1, 7, 576, 584, 1728, 4608, 8640, 37440, 32832, 65536][seed % 10]
    data = torch.randint(0, 256, (size,), generator=generator, dtype=torch.int32).to(torch.uint8)
    path = dump_file(tmp_path, data)
    code, out, _ = call(capsys, "guess", path)
    assert code == 0 and (size < 300 or "fit no layout" in out or "little evidence" in out or "bits" in out)
    for layout_id in IDS:
        assert call(capsys, "show", layout_id, "--hex", path, "--rows", "1")[0] in (0, 2)


# guess


def named(found, layout, rows):
    """Whether the truth comes first, or the first candidate's doubts name it."""
    first = found[0]
    if (first.layout.fingerprint, first.rows) == (layout.fingerprint, rows):
        return "first"
    return "doubt" if any(layout.id in doubt for doubt in first.doubts) else "missed"


@pytest.mark.parametrize("kind", ["plain", "spread", "outliers"])
@pytest.mark.parametrize(("rows", "count"), [(64, 1), (64, 3), (2, 8)])
@pytest.mark.parametrize("layout_id", [i for i in IDS if i != "state_f32"])
def test_every_layout_is_guessed_or_named(layout_id, rows, count, kind):
    layout = get_layout(layout_id)
    for seed in range(3):
        found = guess(pages_of(layout, rows, count, seed=seed, kind=kind).flatten())
        verdict = named(found, layout, found[0].rows if not layout.tail_bytes else rows)
        allowed = {"index_mxfp4_hadamard", "fp8_ds_mla_fnuz", "fp8_ds_mla", "f32_row", "index_f32"}
        assert verdict == "first" or (layout_id in allowed and verdict == "doubt"), [
            c.layout.id for c in found
        ]
        for other in found[1:]:
            pair = {found[0].layout.id, other.layout.id}
            assert other.bits < 0.98 * found[0].bits or any(other.layout.id in d for d in found[0].doubts), (
                pair
            )


@pytest.mark.parametrize(("width", "rows"), STATES)
def test_states(width, rows):
    layout = get_layout("state_f32").sized(width)
    found = guess(pages_of(layout, rows, 2).flatten())
    assert found[0].layout.family == "state"
    twins = [c for c in found if c.bits == found[0].bits]
    assert layout.fingerprint in {c.layout.fingerprint for c in twins}
    assert len(twins) == 1 or any("state_f32 of width" in doubt for doubt in found[0].doubts)


def test_rows_given_are_used():
    page = pages_of(get_layout("fp8_ds_mla"), 7)
    assert guess(page.flatten()) == [] or guess(page.flatten())[0].rows != 7
    assert (guess(page.flatten(), rows=7)[0].layout.id, guess(page.flatten(), rows=7)[0].rows) == (
        "fp8_ds_mla",
        7,
    )


def test_a_zero_block_tells_the_dialects_apart():
    for layout_id, byte in (("fp8_ds_mla", 105), ("fp8_ds_mla_fnuz", 106)):
        layout = get_layout(layout_id)
        x = torch.randn(1, 64, 512, generator=torch.Generator().manual_seed(1))
        x[:, :40, :64] = 0
        x[:, :, 448:] *= 3  # the louder rotated part misleads the hint from loudness
        page = layout.encode_pages(x.bfloat16())
        assert int(page[0, 64 * 576]) == byte
        assert guess(page.flatten())[0].layout.id == layout_id


def test_doubts_are_stated():
    found = guess(pages_of(get_layout("index_mxfp4"), 64).flatten())
    assert [c.layout.id for c in found[:2]] == ["index_mxfp4", "index_mxfp4_hadamard"]
    assert f"index_mxfp4_hadamard: {SAME_BYTES}" in found[0].doubts
    assert any(
        "cannot be seen" in doubt for doubt in guess(pages_of(get_layout("bf16_row"), 64).flatten())[0].doubts
    )
    damaged = pages_of(get_layout("fp8_ds_mla"), 64)
    damaged[0, :5] = 0x7F
    assert (
        "5 of 28672 do not hold: codes are not 0x7f or 0xff, NaN in e4m3fn"
        in guess(damaged.flatten())[0].doubts
    )


def test_interleaved_records_are_recognised():
    layout = get_layout("fp8_ds_mla")
    records = layout.encode(torch.randn(64, 512).bfloat16())
    first = guess(records.flatten())[0]
    assert (first.layout.id.removesuffix("_fnuz"), first.rows) == ("fp8_ds_mla", 1)
    assert any("scales beside it" in doubt for doubt in first.doubts)


def test_unpadded_pages():
    page = pages_of(get_layout("fp8_ds_mla"), 64)[:, :37376]
    assert (guess(page.flatten())[0].rows, guess(page.flatten())[0].page_bytes) == (64, 37376)


def test_guess_prints_and_reports(tmp_path, capsys):
    path = dump_file(tmp_path, pages_of(get_layout("index_fp8"), 64, 2))
    _, text, _ = call(capsys, "guess", path)
    assert "1. index_fp8, 64 rows a page: 2 pages of 8640 bytes with padding" in text
    assert "all 128 f32 scales are powers of two" in text and "a guess from sizes and statistics" in text
    report = json.loads(call(capsys, "guess", path, "--json")[1])
    assert report["candidates"][0]["id"] == "index_fp8" and report["bytes"] == 17280
    code, text, _ = call(capsys, "guess", dump_file(tmp_path, torch.arange(999).to(torch.uint8)))
    assert code == 0 and "fit no layout" in text
    code, _, err = call(capsys, "guess", path, "--rows", "0")
    assert code == 2 and "do not fit" in err


@pytest.mark.parametrize(
    "data", [torch.zeros(0, dtype=torch.uint8), torch.zeros(4), torch.zeros(2, 3, dtype=torch.uint8)]
)
def test_guess_refuses_other_tensors(data):
    with pytest.raises(LayoutError, match="guess takes the bytes of pages"):
        guess(data)


def test_pieces_of_one_row():
    layout = get_layout("index_fp8")
    page = pages_of(layout, 3)[0]
    assert {p.row for p in pieces(layout, page, 3, only=2)} == {2}
