"""A page of a cache drawn byte by byte: fields in colours, wrong bytes marked, the first of them in hex."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np

from dsv4core.errors import DSV4CoreError
from dsv4core.layout import get_layout
from dsv4core.layout.geometry import Span

WIDTH, LEFT, LINE = 900, 76, 14
LINES_SHOWN = 26
COLOURS = 6
AROUND = 16


def draw(facts: Mapping[str, Any]) -> str:
    """The page of a failure as HTML, from the facts of its mismatch; nothing where it has no page."""
    if "page" not in facts:
        return ""
    try:
        layout = get_layout(facts["layout"])
        spans = layout.fields(facts["rows"])
        line = layout.row_bytes
    except DSV4CoreError as error:
        return f"<p class=quiet>The page cannot be drawn: {escape(str(error))}</p>"
    size = facts["page_bytes"]
    owner = _owners(spans, size)
    wrong = np.zeros(size, dtype=bool)
    for first, last in facts["ranges"]:
        wrong[first : last + 1] = True
    words = (
        f"page {facts['page']} of layout {facts['layout']}, {facts['rows']} rows, {size:,} bytes, "
        f"{facts['differ']:,} of them wrong"
    )
    return (
        f"<p>{escape(words)}</p>{_legend(spans, owner, wrong)}{_picture(owner, wrong, line, words)}"
        f"{_hex(facts, spans, owner, wrong)}"
    )


def place(spans: Sequence[Span], byte: int) -> str:
    """Row and field of a byte."""
    for span in spans:
        row, inside = divmod(byte - span.offset, span.stride) if span.stride else (0, byte - span.offset)
        if 0 <= row < span.items and 0 <= inside < span.nbytes:
            return f"row {row}, {span.name}[{inside}]" if span.stride else f"{span.name}[{inside}]"
    return "between fields"


def _owners(spans: Sequence[Span], size: int) -> np.ndarray:
    """The number of the field that each byte belongs to, -1 for padding. Shapes: -> i64 [bytes]."""
    owner = np.full(size, -1)
    for number, span in enumerate(spans):
        if span.stride:
            starts = span.offset + span.stride * np.arange(span.items)
            owner[(starts[:, None] + np.arange(span.nbytes)).reshape(-1)] = number
    return owner


def _legend(spans: Sequence[Span], owner: np.ndarray, wrong: np.ndarray) -> str:
    items: list[str] = []
    for number, span in enumerate(spans):
        mine = owner == (number if span.stride else -1)
        bad = int((mine & wrong).sum())
        said = f", {bad} wrong" if bad else ""
        items.append(
            f'<li><span class="swatch" style="background:{_colour(number if span.stride else -1)}"></span>'
            f"<code>{escape(span.name)}</code> {escape(span.dtype)}{said}</li>"
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _picture(owner: np.ndarray, wrong: np.ndarray, line: int, words: str) -> str:
    """Lines of one record each; runs of lines without a wrong byte are left out."""
    count = -(-len(owner) // line)
    y = 0
    parts: list[str] = []
    before = -1
    for number in _lines_shown(wrong, line, count):
        if number != before + 1:
            parts.append(f'<text x="{LEFT}" y="{y + 11}" class="quiet">… {number - before - 1} lines</text>')
            y += 16
        start, stop = number * line, min((number + 1) * line, len(owner))
        parts.append(f'<text x="{LEFT - 8}" y="{y + 10}" text-anchor="end" class="quiet">{start:,}</text>')
        for first, last, field in _runs(owner[start:stop]):
            parts.append(_box(first, last, line, y, f"fill:{_colour(field)}"))
        for first, last, _ in (run for run in _runs(wrong[start:stop].astype(int)) if run[2]):
            parts.append(_mark(first, last, line, y))
        y += LINE
        before = number
    return (
        f'<svg viewBox="0 0 {WIDTH} {y + 6}" role="img" aria-label="{escape(words)}">{"".join(parts)}</svg>'
    )


def _lines_shown(wrong: np.ndarray, line: int, count: int) -> list[int]:
    """The first line, the last, and those around wrong bytes, as many as fit."""
    bad = sorted({int(i) // line for i in np.flatnonzero(wrong)})
    chosen = {0, count - 1}
    for number in bad:
        if len(chosen) >= LINES_SHOWN:
            break
        chosen |= {max(number - 1, 0), number, min(number + 1, count - 1)}
    return sorted(chosen)


def _runs(values: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Runs of equal values as (first, last, value)."""
    breaks = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    for first, stop in pairwise(breaks):
        yield first, stop - 1, int(values[first])


def _box(first: int, last: int, line: int, y: int, style: str) -> str:
    scale = (WIDTH - LEFT) / line
    left, width = LEFT + first * scale, (last - first + 1) * scale
    return f'<rect x="{left:.2f}" y="{y}" width="{width:.2f}" height="{LINE - 2}" style="{style}"/>'


def _mark(first: int, last: int, line: int, y: int) -> str:
    scale = (WIDTH - LEFT) / line
    width = max((last - first + 1) * scale, 3)
    left = LEFT + first * scale - (width - (last - first + 1) * scale) / 2
    return (
        f'<rect x="{left:.2f}" y="{y - 2}" width="{width:.2f}" height="{LINE + 2}" '
        'style="fill:var(--mark);stroke:var(--paper);stroke-width:.7"/>'
    )


def _hex(facts: Mapping[str, Any], spans: Sequence[Span], owner: np.ndarray, wrong: np.ndarray) -> str:
    """The bytes around the first wrong one, as they were found."""
    byte = facts["byte"]
    said = f"byte {byte:,}, {place(spans, byte)}: expected {facts['expected']}, got {facts['got']}"
    if "page_hex" not in facts:
        return f"<p><strong>{escape(said)}</strong></p>"
    page = bytes.fromhex(facts["page_hex"])
    start = max(byte // AROUND - 1, 0) * AROUND
    lines: list[str] = []
    for at in range(start, min(start + 3 * AROUND, len(page)), AROUND):
        cells = "".join(
            f'<td class="mono{" wrong" if wrong[i] else ""}" title="{escape(place(spans, i))}" '
            f'style="border-bottom-color:{_colour(int(owner[i]))}">{page[i]:02x}</td>'
            for i in range(at, min(at + AROUND, len(page)))
        )
        lines.append(f"<tr><th class=mono scope=row>{at:,}</th>{cells}</tr>")
    return (
        f'<p><strong>{escape(said)}</strong></p><div class="scroll"><table class="bytes">'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _colour(number: int) -> str:
    return "var(--gap)" if number < 0 else f"var(--f{number % COLOURS})"
