"""The texts of `dsv4core layout show ID --hex FILE` and `dsv4core layout guess FILE`."""

from __future__ import annotations

import json
from typing import Any

from dsv4core.cli.layout_files import read_part
from dsv4core.errors import LayoutError
from dsv4core.layout import CacheLayout
from dsv4core.layout.dump import Piece, pieces, remarks
from dsv4core.layout.guess import SAMPLE_BYTES, Candidate, guess

SHOWN = 5
LARGEST_PAGE = 8 << 20
CAUTION = "a guess from sizes and statistics; an export carries the layout's fingerprint, which is certain"


def dump(layout: CacheLayout, path: str, rows: int, *, page: int, row: int | None, as_json: bool) -> str:
    """One page of a file, field by field."""
    size, payload = layout.page_bytes(rows), rows * layout.record_bytes
    if page < 0 or (row is not None and not 0 <= row < rows):
        raise LayoutError(
            f"layout {layout.id!r}: page {page}, row {row} were asked for; pages count from 0, "
            f"rows are 0 to {rows - 1}"
        )
    if size > LARGEST_PAGE:
        raise LayoutError(
            f"layout {layout.id!r}: a page of {rows} rows has {size} bytes; at most {LARGEST_PAGE} are shown"
        )
    data, total = read_part(path, page * size, size)
    if data.numel() < payload:
        raise LayoutError(
            f"layout {layout.id!r}: page {page} of {rows} rows needs {payload} bytes from byte "
            f"{page * size} on, {path} has {total} in all; check --rows and --page, or type: "
            f"dsv4core layout guess {path}"
        )
    found, said = list(pieces(layout, data, rows, only=row)), remarks(layout, data, rows)
    if as_json:
        fields = [
            {**p._asdict(), "data": p.data.hex(), "values": [_json(v) for v in p.values]} for p in found
        ]
        described = {"id": layout.id, "fingerprint": layout.fingerprint, "rows": rows, "page": page}
        return json.dumps({**described, "file_bytes": total, "fields": fields, "remarks": said}, indent=2)
    rotated = "; values are Hadamard-rotated" if layout.rotate == "hadamard" else ""
    named = f"{layout.id} version {layout.version}, fingerprint {layout.fingerprint}"
    head = f"{named}, page {page} of {rows} rows{rotated}"
    lines = [
        head,
        *(f"note: {text}" for text in said),
        "",
        f"{'byte':>8} {'row':>4}  {'field':<16} {'hex':<33} value",
    ]
    return "\n".join([*lines, *(_line(p) for p in found)])


def _line(p: Piece) -> str:
    if p.row is None:
        return f"{p.offset:>8} {'':>4}  {p.field:<16} {p.data.hex():<33} {p.last + 1} bytes, never written"
    name = f"{p.field}[{p.first}]" if p.first == p.last else f"{p.field}[{p.first}..{p.last}]"
    return f"{p.offset:>8} {p.row:>4}  {name:<16} {p.data.hex():<33} {' '.join(f'{v:.6g}' for v in p.values)}"


def _json(value: float) -> float | str:
    """JSON has no NaN or infinity."""
    return value if abs(value) < float("inf") else str(value)


def identify(path: str, *, rows: int | None, as_json: bool) -> str:
    """Ranked candidates for the layout of a file, with evidence and doubts."""
    data, total = read_part(path, 0, SAMPLE_BYTES)
    found = guess(data, size=total, rows=rows)
    if as_json:
        described = [_described(c) for c in found]
        return json.dumps(
            {"file": path, "bytes": total, "candidates": described, "caution": CAUTION}, indent=2
        )
    if not found:
        return (
            f"{path}: {total} bytes fit no layout: no whole number of pages of the usual row counts explains "
            f"them. Other row counts: --rows N; a dump cut short or with a header has to be trimmed first"
        )
    lines = [f"{path}: {total} bytes; {min(total, SAMPLE_BYTES)} looked at; {CAUTION}"]
    for place, c in enumerate(found[:SHOWN], 1):
        width = f" of width {c.layout.width}" if c.layout.family == "state" else ""
        padded = "" if c.page_bytes == c.rows * c.layout.record_bytes else " with padding"
        lines += [
            "",
            f"{place}. {c.layout.id}{width}, {c.rows} rows a page: {c.pages} pages of {c.page_bytes} bytes"
            f"{padded}, {c.bits:.0f} bits of evidence",
            *(f"   {fact}" for fact in c.facts),
            *(f"   doubt: {text}" for text in c.doubts),
        ]
    return "\n".join(lines)


def _described(c: Candidate) -> dict[str, Any]:
    return {
        "id": c.layout.id,
        "fingerprint": c.layout.fingerprint,
        "width": c.layout.width,
        "rows": c.rows,
        "pages": c.pages,
        "page_bytes": c.page_bytes,
        "bits": round(c.bits, 1),
        "facts": [{"what": f.what, "held": f.held, "of": f.of, "bits": round(f.bits, 1)} for f in c.facts],
        "doubts": list(c.doubts),
    }
