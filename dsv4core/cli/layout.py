"""`dsv4core layout`: list the cache layouts, draw the byte map of a page, read and identify dumped pages."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from dsv4core.cli import layout_bytes
from dsv4core.errors import LayoutError
from dsv4core.layout import CacheLayout, get_layout, layouts

DEFAULT_ROWS = {"main": 64, "index": 64, "state": 4}
DEFAULT_STATE_WIDTH = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `list`, `show ID [--hex FILE]` and `guess FILE`, each with `--json`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|show|guess")
    listing = actions.add_parser("list", help="every layout with its fingerprint and sizes")
    showing = actions.add_parser("show", help="the byte map of one page")
    showing.add_argument("id", help="layout id, for example fp8_ds_mla")
    showing.add_argument("--rows", type=int, help="rows per page (64; compressor states 4)")
    showing.add_argument("--width", type=int, help=f"state_f32 only: W (default {DEFAULT_STATE_WIDTH})")
    showing.add_argument(
        "--hex", metavar="FILE", help="name every field of a dumped page (raw bytes or hex text)"
    )
    showing.add_argument("--page", type=int, default=0, help="which page of the file (default 0)")
    showing.add_argument("--row", type=int, help="only this row of the page")
    guessing = actions.add_parser("guess", help="which layout the pages of a file have, with the doubts")
    guessing.add_argument("file", metavar="FILE", help="one or more whole pages, raw bytes or hex text")
    guessing.add_argument("--rows", type=int, help="rows per page, if known")
    for action in (listing, showing, guessing):
        # No default of its own: that would undo a --json given before the action.
        action.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="machine-readable output"
        )


def run(args: argparse.Namespace) -> int:
    """Print what was asked for; 0, or 2 with the reason on stderr where there is no such layout or size."""
    try:
        text = ACTIONS[args.action](args)
    except LayoutError as problem:
        print(f"dsv4core layout: {problem}", file=sys.stderr)
        return 2
    print(text)
    return 0


def describe(layout: CacheLayout, rows: int) -> dict[str, Any]:
    """Everything about a page of `rows` rows as plain data, which is what `--json` prints."""
    payload = rows * layout.record_bytes
    return {
        "id": layout.id,
        "version": layout.version,
        "fingerprint": layout.fingerprint,
        "family": layout.family,
        "width": layout.width,
        "values": layout.values,
        "value_dtype": layout.value_dtype,
        "block": layout.block,
        "rotate": layout.rotate,
        "summary": layout.summary,
        "rows": rows,
        "row_bytes": layout.row_bytes,
        "tail_bytes": layout.tail_bytes,
        "record_bytes": layout.record_bytes,
        "payload_bytes": payload,
        "padding_bytes": layout.page_bytes(rows) - payload,
        "page_bytes": layout.page_bytes(rows),
        "alignment": layout.alignment,
        "fields": [{**span._asdict(), "formula": span.formula} for span in layout.fields(rows)],
    }


def _sized(layout: CacheLayout, width: int | None) -> CacheLayout:
    if layout.width is None:
        return layout.sized(DEFAULT_STATE_WIDTH if width is None else width)
    return layout if width is None else layout.sized(width)


def _list(args: argparse.Namespace) -> str:
    pages = [describe(_sized(layout, None), DEFAULT_ROWS[layout.family]) for layout in layouts()]
    if args.json:
        return json.dumps(pages, indent=2)
    head = f"{'id':<23} {'version':>7}  {'fingerprint':<12} {'B/row':>6} {'rows':>5} {'page':>7}  what it is"
    line = "{id:<23} {version:>7}  {fingerprint:<12} {record_bytes:>6} {rows:>5} {page_bytes:>7}  {summary}"
    return "\n".join([head, *(line.format(**page) for page in pages)])


def _show(args: argparse.Namespace) -> str:
    layout = _sized(get_layout(args.id), args.width)
    rows = DEFAULT_ROWS[layout.family] if args.rows is None else args.rows
    page = describe(layout, rows)
    if args.hex is not None:
        return layout_bytes.dump(layout, args.hex, rows, page=args.page, row=args.row, as_json=args.json)
    if args.json:
        return json.dumps(page, indent=2)
    rotated = ", Hadamard-rotated" if layout.rotate == "hadamard" else ""
    lines = [
        "{id} version {version}, fingerprint {fingerprint}".format(**page),
        f"{layout.summary}",
        f"{layout.values} values a row, decoded to {layout.value_dtype}{rotated}",
        "",
        "page of {rows} rows: {rows} * ({row_bytes} + {tail_bytes}) = {payload_bytes} bytes and "
        "{padding_bytes} of padding to a multiple of {alignment}: {page_bytes}".format(**page),
        "",
        *_drawing(layout, rows),
        "",
        f"{'field':<12}{'dtype':<15}{'bytes':>6}  {'of row i at byte':<18}",
        *(f"{s.name:<12}{s.dtype:<15}{s.nbytes:>6}  {s.formula:<18}" for s in layout.fields(rows)),
    ]
    return "\n".join(line.rstrip() for line in lines)


def _drawing(layout: CacheLayout, rows: int) -> list[str]:
    """One line per record that fits the eye: the first two and the last, of rows and then of tails."""
    lines: list[str] = []
    parts = (("row", layout.row_fields, 0, layout.row_bytes),)
    if layout.tail_bytes:
        parts += (("tail", layout.tail_fields, layout.tail_offset(rows, 0), layout.tail_bytes),)
    for name, fields, start, size in parts:
        box = "|" + "|".join(f" {field.name} {field.nbytes} " for field in fields) + "|"
        shown = [row for row in (0, 1) if row < rows - 1]
        for row in (*shown, rows - 1):
            if row == rows - 1 and rows > 3:
                lines.append(f"{'':>8}  ...")
            first = start + row * size
            lines.append(f"{first:>8}  {name:<4} {row:<4} {box}")
    padding = layout.page_bytes(rows) - rows * layout.record_bytes
    if padding:
        lines.append(f"{rows * layout.record_bytes:>8}  {'':<9} | (padding, never written) {padding} |")
    lines.append(f"{layout.page_bytes(rows):>8}  end")
    return lines


def _guess(args: argparse.Namespace) -> str:
    return layout_bytes.identify(args.file, rows=args.rows, as_json=args.json)


ACTIONS: dict[str, Callable[[argparse.Namespace], str]] = {"list": _list, "show": _show, "guess": _guess}
