"""Drawn with SVG: the outcomes of a run as one bar, and how far each case's worst error is from its bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10
from statistics import median

LEFT, RIGHT, WIDTH = 250, 860, 900
LOW, HIGH = -4, 1  # decades of error / bound on the axis
CELL = 7
STACK = 4
DOTS = 250
"""An op with more cases than this is drawn as bars: a dot of its own for each would only be heavy."""


@dataclass(frozen=True)
class Point:
    """A case's worst error in one op, in units of the bound."""

    case: str
    ratio: float
    failed: bool


def outcomes(totals: Mapping[str, int]) -> str:
    """One bar of all outcomes, in proportion."""
    whole = sum(totals.values()) or 1
    at = 0.0
    parts: list[str] = []
    for word, number in totals.items():
        size = WIDTH * number / whole
        if number:
            title = f"{number} {word}"
            parts.append(
                f'<rect x="{at:.1f}" y="0" width="{max(size - 1, 1):.1f}" height="14" rx="2" '
                f'style="fill:var(--{word.replace(" ", "-")})"><title>{title}</title></rect>'
            )
        at += size
    words = ", ".join(f"{number} {word}" for word, number in totals.items() if number)
    return f'<svg viewBox="0 0 {WIDTH} 14" role="img" aria-label="{escape(words)}">{"".join(parts)}</svg>'


def errors(points: Mapping[str, Sequence[Point]]) -> str:
    """A strip per op on a logarithmic axis: one dot per case, the bound at 1."""
    if not points:
        return "<p>No case with a bound was measured.</p>"
    bands: list[str] = []
    y = 6
    for op, found in points.items():
        columns = _columns(found)
        height = max(30, CELL * max(min(len(members), STACK) for members in columns.values()) + 12)
        base = y + height - 8
        bands.append(f'<text x="0" y="{base - 2}">{escape(op)}</text>')
        bands.append(
            f'<text x="{LEFT - 14}" y="{base - 2}" text-anchor="end" class="quiet">{len(found)}</text>'
        )
        bands.append(f'<line class="axis" x1="{LEFT}" y1="{base + 4}" x2="{RIGHT}" y2="{base + 4}"/>')
        bands += _bars(columns, base) if len(found) > DOTS else _dots(columns, base)
        y += height
    grid = "".join(
        f'<line class="{"bound" if decade == 0 else "axis"}" x1="{_x(decade)}" y1="0" x2="{_x(decade)}" '
        f'y2="{y}"/><text x="{_x(decade)}" y="{y + 18}" text-anchor="middle" class="quiet">'
        f"{_tick(decade)}</text>"
        for decade in range(LOW, HIGH + 1)
    )
    zero = f'<text x="{LEFT}" y="{y + 18}" text-anchor="middle" class="quiet">0</text>'
    words = "; ".join(f"{op}: {_words(found)}" for op, found in points.items())
    return (
        f'<svg viewBox="0 0 {WIDTH} {y + 28}" role="img" aria-label="Worst error of each case relative to '
        f'its bound. {escape(words)}">{grid}{zero}{"".join(bands)}</svg>'
    )


def _words(found: Sequence[Point]) -> str:
    ratios = [point.ratio for point in found]
    return f"{len(ratios)} cases, median {median(ratios):.2g}, largest {max(ratios):.2g} of the bound"


def _columns(found: Sequence[Point]) -> dict[int, list[Point]]:
    """Points by the column of the plot that they fall into, failures first so that they are seen."""
    columns: dict[int, list[Point]] = {}
    for point in sorted(found, key=lambda item: (not item.failed, item.ratio, item.case)):
        columns.setdefault(floor(_place(point.ratio) / CELL), []).append(point)
    return columns


def _dots(columns: Mapping[int, Sequence[Point]], base: int) -> list[str]:
    shown: list[str] = []
    for column, members in columns.items():
        for level, point in enumerate(members):
            text = f"{point.case}: {point.ratio:.3g} of the bound"
            shown.append(
                f'<circle cx="{column * CELL + CELL / 2}" cy="{base - CELL * min(level, STACK - 1)}" r="3" '
                f'style="fill:var(--{"fail" if point.failed else "portable"})" fill-opacity=".75">'
                f"<title>{escape(text)}</title></circle>"
            )
    return shown


def _bars(columns: Mapping[int, Sequence[Point]], base: int) -> list[str]:
    most = max(map(len, columns.values()))
    shown: list[str] = []
    for column, members in columns.items():
        tall = max(2.0, CELL * STACK * len(members) / most)
        colour = "fail" if any(point.failed for point in members) else "portable"
        text = f"{len(members)} cases, {members[0].ratio:.2g} to {members[-1].ratio:.2g} of the bound"
        shown.append(
            f'<rect x="{column * CELL}" y="{base + 3 - tall:.1f}" width="{CELL - 1}" height="{tall:.1f}" '
            f'style="fill:var(--{colour})" fill-opacity=".75"><title>{text}</title></rect>'
        )
    return shown


def _place(ratio: float) -> float:
    """Where a ratio lies: 0 at the left end, what is too small for the axis between it and the axis."""
    if ratio == 0:
        return LEFT
    return max(_x(min(log10(ratio), HIGH)), LEFT + 20)


def _x(decade: float) -> float:
    start = LEFT + 40
    return round(start + (RIGHT - start) * (decade - LOW) / (HIGH - LOW), 1)


def _tick(decade: int) -> str:
    return {0: "bound", 1: "10 and more"}.get(decade, f"1/{10**-decade:,}".replace(",", " "))
