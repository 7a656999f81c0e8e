"""aiter's orders of bytes, written down here a second time, and the FNUZ pages of gfx942 engines."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dsv4core.errors import LayoutError
from dsv4core.layout import conversion, get_layout, transcode
from dsv4core.layout.guess import guess
from dsv4core_rocm import layouts

ROWS, COUNT = 32, 3


@pytest.fixture(autouse=True)
def provided() -> None:
    layouts.provide()


def encoded(layout: str, seed: int = 1) -> Tensor:
    found = get_layout(layout)
    g = torch.Generator().manual_seed(seed)
    return found.encode_pages(torch.randn(COUNT, ROWS, found.values, generator=g).bfloat16())


@pytest.mark.parametrize("layout", ["index_fp8", "index_fp8_hadamard_f32"])
def test_fp8_tiles_are_a_permutation_of_axes(layout: str) -> None:
    plain = encoded(layout)
    tiled = layouts.convert(plain, layout, f"{layout}_tiled", rows=ROWS)
    values = plain[:, : ROWS * 128].view(COUNT, ROWS // 16, 16, 8, 16).transpose(2, 3)
    assert torch.equal(tiled[:, : ROWS * 128], values.reshape(COUNT, -1))
    assert torch.equal(tiled[:, ROWS * 128 :], plain[:, ROWS * 128 :])


@pytest.mark.parametrize("layout", ["index_mxfp4", "index_mxfp4_hadamard"])
def test_mxfp4_tiles(layout: str) -> None:
    plain = encoded(layout)
    tiled = layouts.convert(plain, layout, f"{layout}_tiled", rows=ROWS)
    values = plain[:, : ROWS * 64].view(COUNT, ROWS, 4, 16).transpose(1, 2)
    assert torch.equal(tiled[:, : ROWS * 64], values.reshape(COUNT, -1))
    scales = plain[:, ROWS * 64 : ROWS * 68].view(COUNT, ROWS // 16, 16, 4)
    assert torch.equal(tiled[:, ROWS * 64 : ROWS * 68], scales.permute(0, 3, 2, 1).reshape(COUNT, -1))


def test_scales_in_linear_order_are_other_bytes() -> None:
    """The writer of an earlier aiter: right for pages of 16 rows alone."""
    for rows, equal in ((16, True), (32, False)):
        linear = torch.arange(4).unsqueeze(0) * rows + torch.arange(rows).unsqueeze(1) + rows * 64
        places = get_layout("index_mxfp4_tiled").places(rows)[:, 64:]  # type: ignore[attr-defined]
        assert torch.equal(places, linear) is equal


@pytest.mark.parametrize(
    "layout", ["index_fp8", "index_mxfp4", "index_mxfp4_hadamard", "index_fp8_hadamard_f32"]
)
def test_tiled_pages_read_write_and_come_back(layout: str) -> None:
    plain, found, tiled = encoded(layout), get_layout(layout), get_layout(f"{layout}_tiled")
    moved = layouts.convert(plain, layout, tiled.id, rows=ROWS)
    assert torch.equal(layouts.convert(moved, tiled.id, layout, rows=ROWS), plain)
    assert torch.equal(tiled.decode_pages(moved, ROWS), found.decode_pages(plain, ROWS))
    slots = torch.tensor([0, 17, 95, 40])
    assert torch.equal(tiled.read(moved, slots, ROWS), found.read(plain, slots, ROWS))
    parent = torch.full((COUNT, moved.shape[1] + 64), 0xA5, dtype=torch.uint8)
    room = parent[:, : moved.shape[1]]
    everything = torch.arange(COUNT * ROWS)
    tiled.write(room, everything, found.read(plain, everything, ROWS), ROWS)
    assert torch.equal(room[:, : ROWS * found.record_bytes], moved[:, : ROWS * found.record_bytes])
    assert bool((parent[:, moved.shape[1] :] == 0xA5).all())
    assert tiled.fingerprint != found.fingerprint


def test_tiles_do_not_depend_on_torchs_default_device() -> None:
    plain = encoded("index_mxfp4")
    moved = layouts.convert(plain, "index_mxfp4", "index_mxfp4_tiled", rows=ROWS)
    with torch.device("meta"):  # as engines set theirs while they load
        assert torch.equal(layouts.convert(plain, "index_mxfp4", "index_mxfp4_tiled", rows=ROWS), moved)


def test_tiled_pages_are_refused_where_rows_are_meant() -> None:
    page = encoded("index_fp8")
    with pytest.raises(LayoutError, match="holds tiles and no rows"):
        transcode(page, "index_fp8", "index_fp8_tiled", rows=ROWS)
    with pytest.raises(LayoutError, match="whole tiles of 16 rows"):
        layouts.convert(page, "index_fp8", "index_fp8_tiled", rows=24)
    with pytest.raises(LayoutError, match="not one layout in two orders"):
        layouts.convert(page, "index_fp8", "index_mxfp4_tiled", rows=ROWS)


def test_split_pools() -> None:
    pages, split = encoded("fp8_ds_mla"), get_layout("fp8_ds_mla_split")
    pool = transcode(pages, "fp8_ds_mla", split.id, rows=ROWS, dst_rows=COUNT * ROWS)
    nope, rope = split.parts(pool, COUNT * ROWS)
    assert tuple(nope.shape) == (1, COUNT * ROWS, 512) and tuple(rope.shape) == (1, COUNT * ROWS, 128)
    values = get_layout("fp8_ds_mla").decode_pages(pages, ROWS).flatten(0, 1)
    assert torch.equal(split.decode_pages(pool, COUNT * ROWS)[0], values)
    codes = nope[0, :, :448].view(torch.float8_e4m3fn).float().view(-1, 14, 32)
    own = codes * torch.exp2(nope[0, :, 448:462].float() - 127).unsqueeze(-1)
    assert torch.equal(own.flatten(1).bfloat16(), values[:, :448])
    assert torch.equal(rope[0].view(torch.bfloat16), values[:, 448:]) and not nope[0, :, 462:].any()
    back = transcode(pool, split.id, "fp8_ds_mla", rows=COUNT * ROWS, dst_rows=ROWS)
    assert torch.equal(get_layout("fp8_ds_mla").decode_pages(back, ROWS).flatten(0, 1), values)


def test_a_split_row_with_finer_blocks_does_not_become_a_packed_one() -> None:
    values = torch.ones(1, 1, 512).bfloat16()
    values[..., 32:64] = 2.0**-17
    values[..., 33] = 1.25 * 2.0**-17
    pool = get_layout("fp8_ds_mla_split").encode_pages(values)
    with pytest.raises(LayoutError, match="channel 33"):
        transcode(pool, "fp8_ds_mla_split", "fp8_ds_mla", rows=1)


def test_fnuz_pages_both_ways_and_the_code_0x80() -> None:
    pages = encoded("fp8_ds_mla")
    pages[0, :8] = 0x80  # -0 in OCP, NaN in FNUZ
    other = transcode(pages, "fp8_ds_mla", "fp8_ds_mla_fnuz", rows=ROWS)
    assert conversion("fp8_ds_mla", "fp8_ds_mla_fnuz") == "exact"
    assert not bool((other.view(COUNT, -1)[:, : ROWS * 576].view(COUNT, ROWS, 576)[..., :448] == 0x80).any())
    ocp, fnuz = get_layout("fp8_ds_mla"), get_layout("fp8_ds_mla_fnuz")
    assert torch.equal(fnuz.decode_pages(other, ROWS), ocp.decode_pages(pages, ROWS))
    back = transcode(other, "fp8_ds_mla_fnuz", "fp8_ds_mla", rows=ROWS)
    assert torch.equal(ocp.decode_pages(back, ROWS), ocp.decode_pages(pages, ROWS))
    other[0, 5] = 0x80
    with pytest.raises(LayoutError):
        transcode(other, "fp8_ds_mla_fnuz", "fp8_ds_mla", rows=ROWS)


def test_layouts_are_provided_once_and_guessing_passes_over_tiles() -> None:
    layouts.provide()
    assert not get_layout("index_fp8_tiled").in_rows
    plain = encoded("index_fp8")
    assert all(found.layout.id != "index_fp8_tiled" for found in guess(plain.flatten()))
    split = get_layout("fp8_ds_mla_split")
    pages = split.encode_pages(torch.randn(4, 64, 512, generator=torch.Generator().manual_seed(1)).bfloat16())
    assert [found.layout.id for found in guess(pages.flatten())] == [split.id]
