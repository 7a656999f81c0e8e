"""Whether an exported request fits a cache, and its rows on the way out of pages of another size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from dsv4core.cache.export import RequestExport
from dsv4core.cache.header import BlobHeader, ExportHeader, blob_of, model_of
from dsv4core.cache.rows import row_slots, write_rows
from dsv4core.cache.snapshot import sha256
from dsv4core.cache.specs import CacheSpec
from dsv4core.cache.steps import GroupSeat
from dsv4core.config import AttentionConfig
from dsv4core.errors import CacheError


def make_export(
    config: AttentionConfig, specs: Mapping[str, CacheSpec], pages: Mapping[str, Tensor], length: int
) -> RequestExport:
    """Return the export of a request of `length` tokens whose pages are given on the host."""
    blobs = tuple(blob_of(config, spec, length, sha256(pages[key])) for key, spec in specs.items())
    header = ExportHeader(length=length, profile=config.profile, model=model_of(config), blobs=blobs)
    return RequestExport(header, dict(pages))


def check_fits(
    what: str, header: ExportHeader, config: AttentionConfig, specs: Mapping[str, CacheSpec]
) -> dict[str, BlobHeader]:
    """Return the blob of every cache; raise `CacheError` where model, layout or rows are not the same."""
    for name, expected, got in _identity(header, config):
        if expected != got:
            raise CacheError(
                f"{what}: {name}: expected {expected!r}, got {got!r}: rows of another model or profile do "
                "not fit; import into a cache whose config equals that of the export"
            )
    blobs = {blob.key: blob for blob in header.blobs}
    missing = [key for key in specs if key not in blobs]
    if missing:
        raise CacheError(
            f"{what}: blobs: expected those of every layer of this cache, got none of {missing}: export "
            "from a cache that has these layers, or make this one for layers that are there"
        )
    for key, spec in specs.items():
        blob, wanted = blobs[key], blob_of(config, spec, header.length, blobs[key].sha256)
        for name in ("ratio", "layout", "version", "fingerprint", "row_values", "start", "end"):
            expected, got = getattr(wanted, name), getattr(blob, name)
            if expected != got:
                raise CacheError(
                    f"{what}: blob {key!r}: {name}: expected {expected!r}, got {got!r}: these bytes mean "
                    "something else here"
                )
    return {key: blobs[key] for key in specs}


def put_rows(spec: CacheSpec, storage: Tensor, seat: GroupSeat, blob: BlobHeader, pages: Tensor) -> None:
    """Write the rows of exported pages into a seat's own pages, whatever the rows per page on either side."""
    if blob.start == blob.end:
        return
    first = blob.first_page * blob.rows
    places = torch.arange(blob.start - first, blob.end - first, device=pages.device)
    records = blob.layout_object.read(pages, places, blob.rows).to(storage.device)
    table = torch.tensor(seat.pages, dtype=torch.int32, device=storage.device)
    shift = seat.first * spec.rows
    write_rows(spec, storage, row_slots(table, blob.start - shift, blob.end - shift, spec.rows), records)


def _identity(header: ExportHeader, config: AttentionConfig) -> Iterator[tuple[str, object, object]]:
    yield "profile", config.profile, header.profile
    model = model_of(config)
    yield "model fields", sorted(model), sorted(header.model)
    for name, value in model.items():
        yield name, value, header.model.get(name)
