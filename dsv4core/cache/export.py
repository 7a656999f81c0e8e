"""One request outside of a cache: what `export` gives, what `import_` takes, and how it travels as bytes."""

from __future__ import annotations

import ctypes
import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4core.cache.header import ExportHeader
from dsv4core.cache.snapshot import sha256
from dsv4core.errors import CacheError

MAGIC = b"DSV4REQ\0"
VERSION = 1
MAX_HEADER = 2**20
PREFIX = struct.Struct("<8sII")
CHECKSUM_BYTES = 32


@dataclass(frozen=True, eq=False)
class RequestExport:
    """The pages of one request and what they mean; independent of the cache they came from.

    As bytes: magic `DSV4REQ\\0`, version u32, header length u32 (both little endian), the header as JSON, the
    sha256 of all that, then the pages of every blob. The header holds the sha256 of every blob, so its
    checksum covers every byte. Reading runs nothing and allocates no more than the bytes that were given.

    Shapes: pages u8 [pages, page_bytes] on the host by `CacheSpec.key`, rows not owned zero.
    """

    header: ExportHeader
    pages: Mapping[str, Tensor]

    @property
    def length(self) -> int:
        """Tokens of the request."""
        return self.header.length

    @property
    def profile(self) -> str:
        """Profile of the model the pages were written by."""
        return self.header.profile

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that there are pages of."""
        return tuple(sorted({blob.layer for blob in self.header.blobs}))

    @property
    def nbytes(self) -> int:
        """Bytes of all pages."""
        return self.header.nbytes

    @property
    def checksum(self) -> str:
        """Hex sha256 that covers everything: equal requests in pages of equal size have equal ones."""
        return hashlib.sha256(_head(self.header)).hexdigest()

    def verify(self) -> None:
        """Raise `CacheError` unless the pages are those that the header describes, byte for byte."""
        keys = [blob.key for blob in self.header.blobs]
        if sorted(keys) != sorted(self.pages):
            raise CacheError(f"export: expected pages of {sorted(keys)}, got {sorted(self.pages)}")
        for blob in self.header.blobs:
            pages = self.pages[blob.key]
            shape, found = (blob.pages, blob.page_bytes), tuple(pages.shape)
            if pages.dtype != torch.uint8 or found != shape:
                raise CacheError(
                    f"export: blob {blob.key!r}: expected pages torch.uint8 {list(shape)}, got {pages.dtype} "
                    f"{list(found)}"
                )
            _same_checksum(blob.key, blob.sha256, sha256(pages))

    def to_bytes(self) -> bytes:
        """Return the export as bytes for a file or another machine; raise `CacheError` if it was altered."""
        self.verify()
        head = _head(self.header)
        parts: list[bytes | memoryview] = [head, hashlib.sha256(head).digest()]
        # The tensors outlive the views on their bytes: both end with this call.
        pages = [self.pages[blob.key].cpu().contiguous() for blob in self.header.blobs]
        parts += [
            memoryview((ctypes.c_ubyte * page.numel()).from_address(page.data_ptr()))
            for page in pages
            if page.numel()
        ]
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> RequestExport:
        """Read what `to_bytes` wrote, from anywhere; every byte is checked before it is used.

        Errors: `CacheError` for bytes that are cut off, too long, changed, or of another version, naming what
        was expected and what is there.
        """
        try:
            view = memoryview(data).cast("B")
        except (TypeError, ValueError) as problem:
            raise CacheError(f"export: expected bytes, got {type(data).__name__}: {problem}") from None
        header, start = _read_header(view)
        if len(view) != start + header.nbytes:
            raise CacheError(
                f"export: expected {start + header.nbytes} bytes, {header.nbytes} of them pages, got "
                f"{len(view)}"
            )
        spans: dict[str, memoryview] = {}
        for blob in header.blobs:
            spans[blob.key] = view[start : start + blob.nbytes]
            _same_checksum(blob.key, blob.sha256, hashlib.sha256(spans[blob.key]).hexdigest())
            start += blob.nbytes
        pages = {blob.key: _tensor(spans[blob.key], blob.pages, blob.page_bytes) for blob in header.blobs}
        return cls(header, pages)


def _head(header: ExportHeader) -> bytes:
    text = header.to_json()
    if len(text) > MAX_HEADER:
        raise CacheError(f"export: expected a header of at most {MAX_HEADER} bytes, got {len(text)}")
    return PREFIX.pack(MAGIC, VERSION, len(text)) + text


def _read_header(view: memoryview) -> tuple[ExportHeader, int]:
    """The header and where the pages begin, once its length and checksum are right."""
    if len(view) < PREFIX.size:
        raise CacheError(f"export: expected at least {PREFIX.size} bytes, got {len(view)}")
    magic, version, size = PREFIX.unpack(view[: PREFIX.size])
    if magic != MAGIC or version != VERSION:
        raise CacheError(
            f"export: expected {MAGIC!r} version {VERSION}, got {bytes(magic)!r} version {version}"
        )
    end = PREFIX.size + size
    if size > MAX_HEADER or len(view) < end + CHECKSUM_BYTES:
        raise CacheError(
            f"export: expected a header of at most {MAX_HEADER} bytes inside {len(view)} bytes, got one of "
            f"{size}"
        )
    checksum = bytes(view[end : end + CHECKSUM_BYTES])
    _same_checksum("header", checksum.hex(), hashlib.sha256(view[:end]).hexdigest())
    return ExportHeader.from_json(bytes(view[PREFIX.size : end])), end + CHECKSUM_BYTES


def _same_checksum(what: str, expected: str, got: str) -> None:
    if expected != got:
        raise CacheError(f"export: {what!r}: expected sha256 {expected}, got {got}: the bytes were changed")


def _tensor(view: memoryview, pages: int, page_bytes: int) -> Tensor:
    if not pages:
        return torch.zeros((0, page_bytes), dtype=torch.uint8, device="cpu")
    return torch.frombuffer(bytearray(view), dtype=torch.uint8).view(pages, page_bytes)
