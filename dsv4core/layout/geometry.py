"""Where the bytes of a page are: fields, records, tails, padding. Knows nothing about values."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field, PositiveInt, model_validator

from dsv4core._frozen import FrozenModel
from dsv4core.errors import DSV4CoreError, LayoutError

DType = Literal["e4m3fn", "e4m3fnuz", "e2m1x2", "bf16", "f32", "ue8m0", "zero"]

ITEM_BYTES: dict[DType, int] = {
    "e4m3fn": 1,
    "e4m3fnuz": 1,
    "e2m1x2": 1,
    "bf16": 2,
    "f32": 4,
    "ue8m0": 1,
    "zero": 1,
}


class CacheField(FrozenModel):
    """A run of equal items inside a record: where it starts, what it holds. `e2m1x2` counts bytes."""

    error: ClassVar[type[DSV4CoreError]] = LayoutError
    noun: ClassVar[str] = "cache field"

    name: str
    offset: int = Field(ge=0)
    dtype: DType
    count: PositiveInt

    @property
    def nbytes(self) -> int:
        """Bytes of the field in one record."""
        return self.count * ITEM_BYTES[self.dtype]


class Span(NamedTuple):
    """One field as it lies in a page: row i has it at `offset + i * stride`; padding has one item."""

    name: str
    dtype: str
    offset: int
    stride: int
    nbytes: int
    items: int

    @property
    def formula(self) -> str:
        """The byte offset of row i, as text."""
        if self.stride == 0:
            return str(self.offset)
        return f"{self.stride}*i" if self.offset == 0 else f"{self.offset} + {self.stride}*i"


class PageGeometry(FrozenModel):
    """The bytes of a page: all rows' records one after the other, then all rows' tails, then padding.

    A record is therefore *not* contiguous in a page when there are tail fields: the most repeated bug around
    these pages is to read `row_bytes + tail_bytes` at `row * (row_bytes + tail_bytes)`.
    """

    error: ClassVar[type[DSV4CoreError]] = LayoutError
    noun: ClassVar[str] = "layout"

    id: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    version: PositiveInt = 1
    family: Literal["main", "index", "state"]
    width: PositiveInt | None
    row_fields: tuple[CacheField, ...]
    tail_fields: tuple[CacheField, ...] = ()
    alignment: PositiveInt
    value_dtype: Literal["bf16", "f32"]
    block: PositiveInt | None = None
    rotate: Literal["none", "hadamard"] = "none"
    summary: str = ""

    @model_validator(mode="after")
    def _check(self) -> PageGeometry:
        """Fields follow each other without gap or overlap, and have names of their own."""
        names: set[str] = set()
        for fields in (self.row_fields, self.tail_fields):
            expected = 0
            for field in fields:
                if field.offset != expected:
                    what = "a gap before it" if field.offset > expected else "an overlap"
                    raise ValueError(
                        f"field {field.name!r} starts at byte {field.offset}, expected {expected} ({what}); "
                        f"fields follow each other in order"
                    )
                if field.name in names:
                    raise ValueError(f"field {field.name!r} is there twice")
                names.add(field.name)
                expected += field.nbytes
        if not self.row_fields and self.width is not None:
            raise ValueError("there are no row fields, so a row would have no bytes")
        return self

    @property
    def plain_f32(self) -> bool:
        """Whether rows are unrounded f32 (profile `math`): then nothing on the way is rounded either."""
        return all(field.dtype == "f32" for field in self.row_fields)

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row in the front part of a page."""
        if self.width is None:
            raise LayoutError(
                f"layout {self.id!r} has no width yet, because every compressor has its own: "
                f"type get_layout({self.id!r}).sized(width)"
            )
        return sum(field.nbytes for field in self.row_fields)

    @cached_property
    def tail_bytes(self) -> int:
        """Bytes of one row in the part behind all rows."""
        return sum(field.nbytes for field in self.tail_fields)

    @cached_property
    def record_bytes(self) -> int:
        """Bytes of one row altogether; `encode` gives row bytes, then tail bytes."""
        return self.row_bytes + self.tail_bytes

    @cached_property
    def fingerprint(self) -> str:
        """12 hex digits over everything a reader must agree on; the summary is left out."""
        described = self.model_dump(mode="json", exclude={"summary"})
        text = json.dumps(described, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def page_bytes(self, rows: int) -> int:
        """Size of a page of `rows` rows, rounded up to the alignment."""
        payload = self._checked(rows) * self.record_bytes
        return -(-payload // self.alignment) * self.alignment

    def row_offset(self, row: int) -> int:
        """Byte at which the front part of `row` starts in its page."""
        return row * self.row_bytes

    def tail_offset(self, rows: int, row: int) -> int:
        """Byte at which the tail of `row` starts in a page of `rows` rows."""
        return rows * self.row_bytes + row * self.tail_bytes

    def fields(self, rows: int) -> tuple[Span, ...]:
        """The byte map of a page of `rows` rows: front fields, tail fields, padding if there is any."""
        front, tail = self.row_bytes, self.tail_offset(self._checked(rows), 0)
        spans = [Span(f.name, f.dtype, f.offset, front, f.nbytes, rows) for f in self.row_fields]
        behind = self.tail_bytes
        spans += [Span(f.name, f.dtype, tail + f.offset, behind, f.nbytes, rows) for f in self.tail_fields]
        payload = rows * self.record_bytes
        padding = self.page_bytes(rows) - payload
        if padding:
            spans.append(Span("(padding)", "never written", payload, 0, padding, 1))
        return tuple(spans)

    def _checked(self, rows: int) -> int:
        if rows < 1:
            raise LayoutError(f"layout {self.id!r}: a page of {rows} rows was asked for; it needs at least 1")
        return rows
