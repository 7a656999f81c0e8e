"""Layouts of aiter's caches: split rows, and index pages in the order of matrix tiles.

Creating the backend registers them, and `provide` does. Split rows are pages like others, so `transcode` has
them; a page in tile order has no rows to copy, so `convert` moves its bytes.
"""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from dsv4core.errors import LayoutError
from dsv4core.layout import CacheField, CacheLayout, get_layout, layouts, register
from dsv4core.layout.rounding import as_bytes, blocks, finite_bf16, from_bytes, in_blocks, scaled
from dsv4core.numerics import e4m3, ue8m0

NOPE, BLOCK = 448, 32
SCALES = NOPE // BLOCK
TILE = 16
MODES = ("fp8", "mxfp4")


class SplitRow(CacheLayout):
    """448 e4m3 values, a power of two per 32 of them, zeros up to 512; 64 rotated bf16 in a second array.

    A pool of n rows is one page of n rows: `parts` gives its two arrays. Every value of `fp8_ds_mla` fits.
    """

    def _encode(self, values: Tensor) -> Tensor:
        row = finite_bf16(values)
        grouped, amax = blocks(row[..., :NOPE], BLOCK)
        exponent = ue8m0.exponent_e4m3(amax.clamp(min=ue8m0.FLOOR_E4M3))
        codes = e4m3.encode(scaled(grouped, exponent)).flatten(-2)
        scales = torch.nn.functional.pad(ue8m0.to_byte(exponent), (0, 512 - NOPE - SCALES))
        return torch.cat((codes, scales, as_bytes(row[..., NOPE:])), dim=-1)

    def _decode(self, record: Tensor) -> Tensor:
        codes = in_blocks(record[..., :NOPE], BLOCK)
        scale = ue8m0.exp2(ue8m0.byte_exponent(record[..., NOPE : NOPE + SCALES]))
        nope = (e4m3.decode(codes) * scale.unsqueeze(-1)).flatten(-2).to(torch.bfloat16)
        return torch.cat((nope, from_bytes(record[..., 512:], torch.bfloat16)), dim=-1)


class TiledPage(CacheLayout):
    """The records of a row-by-row layout, their bytes in the order in which matrix units read a page."""

    mode: str

    @property
    def in_rows(self) -> bool:
        """No: a tile holds parts of 16 rows."""
        return False

    @property
    def plain(self) -> CacheLayout:
        """The layout with the same records, row by row."""
        return get_layout(self.id.removesuffix("_tiled"))

    def places(self, rows: int, device: torch.device | str = "cpu") -> Tensor:
        """Where the bytes of each record are in a page. Shapes: -> i64 [rows, record_bytes].

        Raises LayoutError unless 16 divides `rows`.
        """
        if rows % TILE or rows < 1:
            raise LayoutError(
                f"layout {self.id!r} has pages of whole tiles of {TILE} rows; {rows} were asked for"
            )
        row, byte, tail = (
            torch.arange(count, device=device) for count in (rows, self.row_bytes, self.tail_bytes)
        )
        row = row.unsqueeze(1)
        if self.mode == "fp8":  # tiles of 16 rows by 16 bytes; scales row by row
            values = row // TILE * TILE * self.row_bytes + byte // TILE * TILE * TILE + row % TILE * TILE
            scales = row * self.tail_bytes + tail
        else:  # runs of 16 bytes of all rows; a scale's rows interleaved by 16
            values = byte // TILE * rows * TILE + row * TILE
            scales = tail * rows + row % TILE * (rows // TILE) + row // TILE
        return torch.cat((values + byte % TILE, rows * self.row_bytes + scales), dim=1)

    def read(self, pages: Tensor, slots: Tensor, rows: int) -> Tensor:
        """Records at slots >= 0. Shapes: u8 [N, B], slots any -> u8 [*slots.shape, record_bytes]."""
        index = slots.long()
        return pages[(index // rows).unsqueeze(-1), self.places(rows, pages.device)[index % rows]]

    def write(self, pages: Tensor, slots: Tensor, record: Tensor, rows: int) -> None:
        """Put records at slots in place. Shapes: slots [n] >= 0, record u8 [n, record_bytes]."""
        index = slots.long()
        pages[(index // rows).unsqueeze(-1), self.places(rows, pages.device)[index % rows]] = record

    def encode_pages(self, values: Tensor) -> Tensor:
        """Whole pages. Shapes: [N, rows, values] -> u8 [N, page_bytes(rows)]."""
        return convert(self.plain.encode_pages(values), self.plain.id, self.id, rows=values.shape[1])

    def decode_pages(self, pages: Tensor, rows: int) -> Tensor:
        """All rows of pages. Shapes: u8 [N, B] -> [N, rows, values]."""
        return self.decode(pages[:, self.places(rows, pages.device)])

    def parts(self, pages: Tensor, rows: int) -> NoReturn:
        """Refuse: no view of such a page has a row in it."""
        raise LayoutError(
            f"layout {self.id!r} holds tiles and no rows: move pages with dsv4core_rocm.layouts.convert"
        )

    def _encode(self, values: Tensor) -> Tensor:
        return self.plain.encode(values)

    def _decode(self, record: Tensor) -> Tensor:
        return self.plain.decode(record)


def convert(pages: Tensor, src: str, dst: str, *, rows: int) -> Tensor:
    """Pages in tile order from pages row by row, or back: the same records, every byte moved once.

    Raises LayoutError for two ids that do not differ in the order alone. Bytes outside of the rows are 0.
    Shapes: u8 [N, B] -> u8 [N, page_bytes(rows)].
    """
    a, b = get_layout(src), get_layout(dst)
    if not (isinstance(a, TiledPage) and a.plain is b) and not (isinstance(b, TiledPage) and b.plain is a):
        raise LayoutError(f"{src!r} and {dst!r} are not one layout in two orders; transcode changes records")
    slots = torch.arange(pages.shape[0] * rows, device=pages.device)
    out = pages.new_zeros((pages.shape[0], b.page_bytes(rows)))
    b.write(out, slots, a.read(pages, slots, rows), rows)
    return out


SPLIT = SplitRow(
    id="fp8_ds_mla_split",
    family="main",
    width=512,
    row_fields=(
        CacheField(name="nope", offset=0, dtype="e4m3fn", count=NOPE),
        CacheField(name="scale", offset=NOPE, dtype="ue8m0", count=SCALES),
        CacheField(name="pad", offset=NOPE + SCALES, dtype="zero", count=512 - NOPE - SCALES),
    ),
    tail_fields=(CacheField(name="rope", offset=0, dtype="bf16", count=64),),
    alignment=16,
    value_dtype="bf16",
    block=BLOCK,
    summary="split pools of aiter's fp8 prefill on gfx950: 448 e4m3 + 14 UE8M0 + 0, rope behind all rows",
)


def _tiled(plain: str, mode: str) -> TiledPage:
    base = get_layout(plain)
    fields = base.model_dump(exclude={"id", "summary"})
    return TiledPage(
        **fields, id=f"{plain}_tiled", mode=mode, summary=f"{plain} in the order of aiter's matrix tiles"
    )


LAYOUTS: tuple[CacheLayout, ...] = (
    SPLIT,
    *(_tiled(plain, "fp8") for plain in ("index_fp8", "index_fp8_hadamard_f32")),
    *(_tiled(plain, "mxfp4") for plain in ("index_mxfp4", "index_mxfp4_hadamard")),
)
"""All five."""


def provide() -> None:
    """Register the layouts that are not registered yet."""
    known = {layout.id for layout in layouts()}
    for layout in LAYOUTS:
        if layout.id not in known:
            register(layout)
