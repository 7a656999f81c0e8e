"""What a page means: rows as values, values as bytes, slots as places in a set of pages."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from dsv4core.errors import LayoutError
from dsv4core.layout import paging
from dsv4core.layout.geometry import PageGeometry

DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "f32": torch.float32}


class CacheLayout(PageGeometry, ABC):
    """A versioned cache layout: byte geometry, the codec of a row, and access to pages by slot.

    A subclass gives `_encode` and `_decode`; `encode` and `decode` check shapes and types around them. A slot
    is `page * rows + row`. Pages are u8 [N, B] with stride(1) = 1 and any stride(0) >= B.
    """

    @property
    def values(self) -> int:
        """Values per record: the width, or both halves of a state."""
        return self._width()

    @property
    def in_rows(self) -> bool:
        """Whether a row's bytes lie together, so that `parts` has views of them."""
        return True

    @property
    def dtype(self) -> torch.dtype:
        """What `decode` gives."""
        return DTYPES[self.value_dtype]

    def encode(self, values: Tensor) -> Tensor:
        """Records of rows, rounded as CA1 rule 9 says; the front bytes of a row, then its tail bytes.

        NaN and infinity become finite values. Finite ones above 1.9375 * 2^127 follow the rounding rules,
        which in an fp8 or fp4 row means that they decode to infinity.
        Shapes: bf16 or f32 [..., values] -> u8 [..., record_bytes]. Raises LayoutError for others.
        """
        if values.dtype not in DTYPES.values() or values.ndim == 0 or values.shape[-1] != self.values:
            raise LayoutError(
                f"layout {self.id!r} encodes bf16 or f32 [..., {self.values}], got {_describe(values)}"
            )
        return self._encode(values)

    def decode(self, record: Tensor) -> Tensor:
        """Values of records. Shapes: u8 [..., record_bytes] -> bf16 or f32 [..., values]."""
        if record.dtype != torch.uint8 or record.ndim == 0 or record.shape[-1] != self.record_bytes:
            raise LayoutError(
                f"layout {self.id!r} decodes u8 [..., {self.record_bytes}], got {_describe(record)}"
            )
        return self._decode(record)

    def factors(self, record: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows as values and a factor per row, where their product would have to be rounded.

        The factor is None where `decode` is exact, which is nearly everywhere.
        Shapes: u8 [..., record_bytes] -> [..., values], f32 [...] or None.
        """
        return self.decode(record), None

    def read(self, pages: Tensor, slots: Tensor, rows: int) -> Tensor:
        """Records at slots, which must be >= 0.

        Shapes: pages u8 [N, B], slots i64 or i32 any -> u8 [*slots.shape, record_bytes].
        """
        return paging.read(self.parts(pages, rows), slots, rows)

    def load(self, out: Tensor, pages: Tensor, slots: Tensor, rows: int) -> None:
        """Put the values at slots, which must be >= 0, into `out`; bf16 or f32 hold them exactly.

        Shapes: out [n, values] (written), pages u8 [N, B], slots i64 or i32 [n].
        """
        out.copy_(self.decode(self.read(pages, slots, rows)))

    def write(self, pages: Tensor, slots: Tensor, record: Tensor, rows: int) -> None:
        """Put records at slots in place; touches exactly `record_bytes` bytes per slot.

        Shapes: pages u8 [N, B], slots i64 or i32 [n] from 0 to N * rows - 1, record u8 [n, record_bytes].
        Raises LayoutError for others; nothing is written then.
        """
        if record.dtype != torch.uint8 or tuple(record.shape) != (*slots.shape, self.record_bytes):
            shape = [*slots.shape, self.record_bytes]
            raise LayoutError(f"layout {self.id!r} writes records u8 {shape}, got {_describe(record)}")
        if slots.numel() and not slots.is_meta:
            # torch counts a negative index from the end, which is a page of somebody else.
            least, most = (int(end) for end in torch.aminmax(slots))
            if least < 0 or most >= pages.shape[0] * rows:
                raise LayoutError(
                    f"layout {self.id!r} writes to {pages.shape[0]} pages of {rows} rows, slots 0 to "
                    f"{pages.shape[0] * rows - 1}; got slots from {least} to {most}: leave out what has none"
                )
        paging.write(self.parts(pages, rows), slots, record, rows)

    def encode_pages(self, values: Tensor) -> Tensor:
        """Whole pages; bytes behind the payload are 0.

        Shapes: bf16 or f32 [N, rows, values] -> u8 [N, page_bytes(rows)].
        """
        if values.ndim != 3:
            raise LayoutError(
                f"layout {self.id!r} encodes pages from [N, rows, {self.values}], got {_describe(values)}"
            )
        rows = values.shape[1]
        pages = values.new_zeros((values.shape[0], self.page_bytes(rows)), dtype=torch.uint8)
        paging.fill(self.parts(pages, rows), self.encode(values))
        return pages

    def decode_pages(self, pages: Tensor, rows: int) -> Tensor:
        """All rows of pages. Shapes: u8 [N, B] -> bf16 or f32 [N, rows, values]."""
        return self.decode(paging.everything(self.parts(pages, rows)))

    def sized(self, width: int) -> CacheLayout:
        """This layout for rows of `width`; only `state_f32` has a choice."""
        if width != self.width:
            raise LayoutError(f"layout {self.id!r} has width {self.width} only; {width} was asked for")
        return self

    @abstractmethod
    def _encode(self, values: Tensor) -> Tensor:
        """u8 [..., record_bytes] of bf16 or f32 [..., values]."""

    @abstractmethod
    def _decode(self, record: Tensor) -> Tensor:
        """[..., values] of u8 [..., record_bytes]."""

    def _width(self) -> int:
        if self.width is None:
            return self.row_bytes  # raises: it says how to get a width
        return self.width

    def parts(self, pages: Tensor, rows: int) -> tuple[Tensor, ...]:
        """Views of the front rows and, where there are some, of the tails.

        Shapes: u8 [N, B] -> u8 [N, rows, row_bytes] and u8 [N, rows, tail_bytes].
        """
        need = self.page_bytes(rows)
        if pages.dtype != torch.uint8 or pages.ndim != 2 or pages.shape[1] < rows * self.record_bytes:
            raise LayoutError(
                f"layout {self.id!r} with {rows} rows needs pages u8 [N, {need}] (at least "
                f"{rows * self.record_bytes} bytes each), got {_describe(pages)}"
            )
        if pages.shape[1] > 1 and pages.stride(1) != 1:
            raise LayoutError(
                f"layout {self.id!r}: the bytes of a page must be adjacent (stride(1) = 1), got strides "
                f"{list(pages.stride())}; page strides (stride(0)) are free"
            )
        return paging.parts(pages, rows, self.row_bytes, self.tail_bytes)


def _describe(tensor: Tensor) -> str:
    """Type and shape as the messages show them."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
