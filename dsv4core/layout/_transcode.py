"""Pages of one layout as pages of another: without loss, or as a writer of the other would have made them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dsv4core.errors import LayoutError
from dsv4core.layout import _shortcuts, native_pages
from dsv4core.layout.base import CacheLayout
from dsv4core.layout.registry import get_layout, layouts
from dsv4core.numerics.hadamard import hadamard128

Conversion = Literal["same", "exact", "writes", "checked"]
CHUNK_BYTES = 1 << 18  # of source pages: temporaries stay in the processor's cache

PLAIN = ("bf16_row", "f32_row", "index_f32")
EXACT = {  # quantised ids that hold every value of another quantised id
    ("fp8_ds_mla", "fp8_ds_mla_fnuz"),
    ("fp8_ds_mla_fnuz", "fp8_ds_mla"),
    ("fp8_row", "fp8_ds_mla"),
    ("fp8_row", "fp8_ds_mla_fnuz"),
    ("index_fp8", "index_fp8_ue8m0x4"),
    ("index_fp8_ue8m0x4", "index_fp8"),
}


def conversion(src: str | CacheLayout, dst: str | CacheLayout) -> Conversion:
    """How pages of `src` become pages of `dst`.

    "same": the records are copied. "exact": every page that a writer can make decodes to equal values.
    "writes": `src` holds unquantised rows, and the result has the bytes that a writer of `dst` makes of them.
    "checked": both are quantised; allowed where the values at hand fit, which is checked row by row.
    Raises LayoutError where the information is not there.
    """
    a, b = _layout(src), _layout(dst)
    if a.family != b.family:
        raise LayoutError(
            f"transcode from {a.id!r} to {b.id!r}: one holds {a.family} rows, the other {b.family} rows, and "
            f"neither can be computed from the other; the layouts of family {a.family} are {_ids(a.family)}"
        )
    if a.id == b.id:
        if a.fingerprint != b.fingerprint:
            raise LayoutError(
                f"transcode from {a.id!r} to itself: the fingerprints differ ({a.fingerprint}, "
                f"{b.fingerprint}), so versions or widths do; give both sides the same .sized(width)"
            )
        return "same"
    if a.rotate != b.rotate and not (a.id == "index_f32" and b.rotate == "hadamard"):
        raise LayoutError(
            f"transcode from {a.id!r} to {b.id!r}: one holds Hadamard-rotated values and the other does not. "
            f"Rotating what was quantised before and quantising it again would be no page of any writer; "
            f"only the unquantised index_f32 can be rotated. Write the pages anew, or keep the rotation of "
            f"{a.id!r}"
        )
    if b.plain_f32 or (b.id == "bf16_row" and not a.plain_f32):
        return "exact"
    if a.id in PLAIN:
        return "writes"
    return "exact" if (a.id, b.id) in EXACT else "checked"


def transcode(
    pages: Tensor,
    src: str | CacheLayout,
    dst: str | CacheLayout,
    *,
    rows: int,
    dst_rows: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Pages of layout `dst` with the rows of `pages`; slot s stays slot s, other bytes are 0.

    `rows` is the page size of the source in rows, `dst_rows` that of the result (default: the same). `out`
    takes the result instead of fresh memory (other memory than `pages`); there only the rows' own bytes are
    written. Rows whose bytes are all 0, as in a fresh cache, become rows whose bytes are all 0. `conversion`
    says what a pair does. Raises LayoutError for pairs that it refuses, and for the first row that `dst`
    cannot hold; `out` is then partly written.
    Shapes: u8 [N, B] -> u8 [ceil(N * rows / dst_rows), dst.page_bytes(dst_rows)].
    """
    a, b = _layout(src), _layout(dst)
    kind = conversion(a, b)
    target = rows if dst_rows is None else dst_rows
    count = -(-pages.shape[0] * rows // target) if target > 0 else 0
    if out is None:
        out = _room(pages, b, count, target, pages.shape[0] * rows)
    elif out.shape[0] != count:
        raise LayoutError(f"transcode to {b.id!r}: out has {out.shape[0]} pages, the result has {count}")
    source, sink = a.parts(pages, rows), b.parts(out, target)
    step = max(1, CHUNK_BYTES // max(1, rows * a.record_bytes))
    native = native_pages.find(pages.device.type)
    left = native(pages, a, rows, out, b, target, step) if native is not None else None
    if left is None and kind == "same" and target == rows:
        size = rows * a.record_bytes
        out[:, :size].copy_(pages[:, :size])
        return out
    for first in range(0, pages.shape[0], step) if left is None else left:
        chunk = tuple(part[first : first + step] for part in source)
        n = chunk[0].shape[0]
        if target == rows:
            _convert(chunk, tuple(part[first : first + n] for part in sink), a, b, kind, first * rows)
        else:
            fresh = pages.new_zeros((n, b.page_bytes(rows)))
            views = b.parts(fresh, rows)
            _convert(chunk, views, a, b, kind, first * rows)
            slots = torch.arange(first * rows, (first + n) * rows, device=pages.device)
            b.write(out, slots, torch.cat(views, dim=-1).flatten(0, 1), target)
    return out


def _room(like: Tensor, b: CacheLayout, count: int, rows: int, slots: int) -> Tensor:
    """Pages whose bytes outside of the rows are 0; the rows are still to be written."""
    out = like.new_empty((count, b.page_bytes(rows)), dtype=torch.uint8)
    out[:, rows * b.record_bytes :] = 0
    if slots < count * rows:
        out[-1] = 0
    return out


def _convert(
    source: tuple[Tensor, ...],
    sink: tuple[Tensor, ...],
    a: CacheLayout,
    b: CacheLayout,
    kind: Conversion,
    slot: int,
) -> None:
    """Fill the sink views [n, rows, bytes] from the source views; `slot` is that of their first row."""
    if kind == "same":
        for mine, theirs in zip(sink, source, strict=True):
            mine.copy_(theirs)
        return
    quick = _shortcuts.SHORTCUTS.get((a.id, b.id))
    if quick is not None and quick(source, sink):
        return
    record = torch.cat(source, dim=-1)
    values = a.decode(record)
    turned = hadamard128(values.to(torch.bfloat16)) if a.rotate != b.rotate else values
    made = b.encode(turned)
    if kind != "writes":
        back = values.nan_to_num(0.0, 0.0, 0.0) if b.id in PLAIN else b.decode(made)
        _check(record, values, back, a, b, slot)
    made = made.masked_fill((record == 0).all(dim=-1, keepdim=True), 0)
    start = 0
    for part in sink:
        part.copy_(made[..., start : start + part.shape[-1]])
        start += part.shape[-1]


def _check(record: Tensor, before: Tensor, after: Tensor, a: CacheLayout, b: CacheLayout, slot: int) -> None:
    """Every value came through; rows of zero bytes hold nothing."""
    x, y = before.float(), after.float()
    wrong = (x != y) & (record != 0).any(dim=-1, keepdim=True)
    if not bool(wrong.any()):
        return
    page, row, channel = (int(i) for i in wrong.nonzero()[0])
    where = slot + page * record.shape[1] + row
    mine, theirs = float(x[page, row, channel]), float(y[page, row, channel])
    ways = [other.id for other in layouts() if other.id in PLAIN and other.family == a.family]
    hint = f"transcode to {' or '.join(ways)}, or write" if a.rotate == "none" else "write"
    raise LayoutError(
        f"transcode from {a.id!r} to {b.id!r}: slot {where} holds {mine!r} in channel {channel}, which "
        f"{b.id!r} would store as {theirs!r} ({int(wrong.sum())} such values among the "
        f"{record.shape[0] * record.shape[1]} rows looked at). Values that were quantised are not quantised "
        f"again: {hint} the pages anew"
    )


def _layout(layout: str | CacheLayout) -> CacheLayout:
    return get_layout(layout) if isinstance(layout, str) else layout


def _ids(family: str) -> str:
    return ", ".join(layout.id for layout in layouts() if layout.family == family)
