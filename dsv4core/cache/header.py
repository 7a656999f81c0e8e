"""What an exported request says about itself, and whether that holds together. No pages in here."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from pydantic import ConfigDict, Field, StrictFloat, StrictInt, model_validator

from dsv4core._frozen import FrozenModel
from dsv4core.cache.specs import CacheSpec, layout_of, owned_rows, state_layout
from dsv4core.config import AttentionConfig
from dsv4core.errors import CacheError, DSV4CoreError, LayoutError
from dsv4core.layout import CacheLayout, get_layout
from dsv4core.plan.groups import GROUPS

MAX_TOKENS = 2**32
MAX_ROWS = 2**20
MAX_BLOBS = 4096

# What the bytes of a row depend on besides weights and layout; heads and outputs do not matter to it.
MODEL_FIELDS = (
    "hidden_size",
    "head_dim",
    "qk_rope_head_dim",
    "index_head_dim",
    "sliding_window",
    "rms_norm_eps",
    "rope_theta",
    "compress_rope_theta",
)
YARN_FIELDS = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow")
Model = dict[str, StrictInt | StrictFloat | None]


class BlobHeader(FrozenModel):
    """One cache of one layer: its layout, its pages, and the rows start:end that they hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    error: ClassVar[type[DSV4CoreError]] = CacheError
    noun: ClassVar[str] = "export blob"

    group: str = Field(max_length=32)
    layer: int = Field(ge=0, lt=MAX_BLOBS)
    ratio: int = Field(ge=0, le=128)
    layout: str = Field(max_length=64)
    version: int = Field(ge=1, le=MAX_TOKENS)
    fingerprint: str = Field(pattern="^[0-9a-f]{12}$")
    row_values: int = Field(ge=1, le=MAX_ROWS)
    rows: int = Field(ge=1, le=MAX_ROWS)
    start: int = Field(ge=0, le=MAX_TOKENS)
    end: int = Field(ge=0, le=MAX_TOKENS)
    page_bytes: int = Field(ge=1, le=2**40)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    @property
    def key(self) -> str:
        """The `CacheSpec.key` of the cache."""
        return f"{self.group}.{self.layer}"

    @property
    def first_page(self) -> int:
        """Number of the first page that is there."""
        return self.start // self.rows

    @property
    def pages(self) -> int:
        """How many pages there are."""
        return -(-self.end // self.rows) - self.first_page if self.end > self.start else 0

    @property
    def nbytes(self) -> int:
        """Bytes of all pages."""
        return self.pages * self.page_bytes

    @property
    def layout_object(self) -> CacheLayout:
        """The layout of this installation by that id; raise `LayoutError` if there is none."""
        return state_layout(self.row_values) if self.layout == "state_f32" else get_layout(self.layout)

    @model_validator(mode="after")
    def _check(self) -> BlobHeader:
        if self.group not in GROUPS or self.ratio not in (0, 4, 128) or self.start > self.end:
            raise ValueError(
                f"blob {self.key!r} of ratio {self.ratio} with rows {self.start} to {self.end}: the groups "
                f"are {list(GROUPS)}, the ratios 0, 4 and 128, and rows begin before they end"
            )
        if GROUPS[self.group].ratio not in (0, self.ratio):
            raise ValueError(f"blob {self.key!r}: a layer of ratio {self.ratio} has no group {self.group!r}")
        try:
            layout = self.layout_object
        except LayoutError as problem:
            raise ValueError(f"blob {self.key!r}: {problem}") from None
        found = (layout.version, layout.fingerprint, layout.page_bytes(self.rows), layout.values)
        given = (self.version, self.fingerprint, self.page_bytes, self.row_values)
        for name, want, got in zip(
            ("version", "fingerprint", "page_bytes", "row_values"), found, given, strict=True
        ):
            if want != got:
                raise ValueError(
                    f"blob {self.key!r}: {name} of layout {self.layout!r} with {self.rows} rows a page: "
                    f"expected {want}, got {got}"
                )
        return self


class ExportHeader(FrozenModel):
    """Everything about an exported request but its pages; the order of `blobs` is that of the pages."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    error: ClassVar[type[DSV4CoreError]] = CacheError
    noun: ClassVar[str] = "export header"

    length: int = Field(ge=0, le=MAX_TOKENS)
    profile: str = Field(max_length=32)
    model: Model = Field(max_length=64)
    blobs: tuple[BlobHeader, ...] = Field(min_length=1, max_length=MAX_BLOBS)

    @property
    def nbytes(self) -> int:
        """Bytes of all pages of all blobs."""
        return sum(blob.nbytes for blob in self.blobs)

    def to_json(self) -> bytes:
        """Return the one spelling of this header: sorted keys, no blanks, ASCII."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, text: bytes) -> ExportHeader:
        """Read a header; raise `CacheError` for anything but what `to_json` writes."""
        try:
            values: Any = json.loads(text)
            count = len(values["blobs"])
            if count > MAX_BLOBS:
                raise CacheError(f"export header: expected at most {MAX_BLOBS} blobs, got {count}")
            blobs = tuple(BlobHeader(**blob) for blob in values["blobs"])
            fields: dict[str, Any] = {**values, "blobs": blobs}
            header = cls(**fields)
        except (ValueError, TypeError, LookupError, RecursionError) as problem:
            raise CacheError(
                "export header: expected JSON of the documented fields, got "
                f"{type(problem).__name__}: {problem}"
            ) from None
        if header.to_json() != text:
            raise CacheError("export header: expected sorted keys without blanks, got another spelling")
        return header

    @model_validator(mode="after")
    def _check(self) -> ExportHeader:
        keys = [blob.key for blob in self.blobs]
        if len(set(keys)) != len(keys):
            raise ValueError("two blobs have one group and layer")
        for blob in self.blobs:
            end = self.length // GROUPS[blob.group].tokens_per_row
            if blob.end != end:
                raise ValueError(
                    f"blob {blob.key!r} of {self.length} tokens: expected rows up to {end}, got {blob.end}"
                )
        return self


def model_of(config: AttentionConfig) -> dict[str, int | float | None]:
    """Return the numbers of a model that the bytes of its rows depend on, weights aside."""
    model: dict[str, int | float | None] = {name: getattr(config, name) for name in MODEL_FIELDS}
    for name in YARN_FIELDS:
        model[f"yarn_{name}"] = None if config.yarn is None else getattr(config.yarn, name)
    return model


def blob_of(config: AttentionConfig, spec: CacheSpec, length: int, sha256: str) -> BlobHeader:
    """Return the header of one cache of a request of `length` tokens."""
    start, end = owned_rows(spec, length)
    layout = layout_of(spec)
    return BlobHeader(
        group=spec.group,
        layer=spec.layer,
        ratio=config.layer(spec.layer).ratio,
        layout=layout.id,
        version=layout.version,
        fingerprint=layout.fingerprint,
        row_values=spec.row_width,
        rows=spec.rows,
        start=start,
        end=end,
        page_bytes=spec.page_bytes,
        sha256=sha256,
    )
