"""The rows of a run as one picture: curves where cases form some, else bars of the first side's lead."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from io import BytesIO
from typing import Any

from dsv4core.bench.measure import Row
from dsv4core.errors import ConfigError

Axes = Any  # matplotlib is optional, also where types are checked
COLOURS = ("#2f6f9f", "#c0792a", "#5f8a3f", "#8a5fa3")
ROOF = "#777777"
PANEL = (5.2, 3.6)
DPI = 110
MS_TICKS = [digit * 10.0**power for power in range(-3, 5) for digit in (1, 2, 3, 5, 7)]
TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 10, 15, 20, 30, 50, 100, 200, 500, 1000)


def library() -> Any:
    """matplotlib's figures. Raises ConfigError without matplotlib."""
    try:
        return import_module("matplotlib.figure")
    except ImportError:
        raise ConfigError('plots need matplotlib; type: pip install "dsv4core[bench]"') from None


def png(rows: Sequence[Row], title: str) -> bytes:
    """The picture as a PNG file. Raises ConfigError without matplotlib."""
    figures = library()
    timed = [row for row in rows if row.median_us is not None]
    curves = list(dict.fromkeys(row.curve for row in timed if row.curve))
    if curves:
        columns = min(3, len(curves))
        lines = -(-len(curves) // columns)
        figure = figures.Figure(figsize=(PANEL[0] * columns, PANEL[1] * lines), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False).flatten()
        for place, name in zip(axes, curves, strict=False):
            _curve(place, name, [row for row in timed if row.curve == name])
        for place in axes[len(curves) :]:
            place.set_visible(False)
    else:
        cases = list(dict.fromkeys(row.case for row in timed))
        figure = figures.Figure(figsize=(9, 1.6 + 0.34 * len(cases)), layout="constrained")
        _bars(figure.subplots(), cases, timed)
    figure.suptitle(title, fontsize=10)
    file = BytesIO()
    figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()


def _sides(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.side for row in rows))


def _curve(axes: Axes, name: str, rows: Sequence[Row]) -> None:
    """Milliseconds over a fact, both logarithmic; the floor dashed."""
    fact = rows[0].x
    for colour, side in zip(COLOURS, _sides(rows), strict=False):
        mine = sorted((row for row in rows if row.side == side), key=lambda row: row.facts[fact])
        at = [row.facts[fact] for row in mine]
        axes.plot(at, [_ms(row.median_us) for row in mine], "o-", ms=4, color=colour, label=side)
        axes.fill_between(
            at,
            [_ms(row.q1_us) for row in mine],
            [_ms(row.q3_us) for row in mine],
            color=colour,
            alpha=0.2,
            lw=0,
        )
    first = sorted((row for row in rows if row.side == rows[0].side), key=lambda row: row.facts[fact])
    if all(row.roof_us for row in first):
        axes.plot(
            [row.facts[fact] for row in first],
            [_ms(row.roof_us) for row in first],
            "--",
            color=ROOF,
            label="floor",
        )
    axes.set(xscale="log", yscale="log", xlabel=fact, ylabel="ms", title=name)
    axes.xaxis.set_major_formatter(_tick)
    axes.set_xticks([row.facts[fact] for row in first], minor=False)
    low, high = axes.get_ylim()
    if high < 100 * low:
        axes.set_yticks([tick for tick in MS_TICKS if low <= tick <= high])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(_plain)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _bars(axes: Axes, cases: list[str], rows: Sequence[Row]) -> None:
    """How many times longer every other side takes, with quartiles; the floor as a mark left of 1."""
    others = _sides([row for row in rows if row.over is not None])
    height = 0.8 / max(len(others), 1)
    for number, (colour, side) in enumerate(zip(COLOURS[1:], others, strict=False)):
        mine = [row for row in rows if row.side == side and row.over is not None]
        at = [cases.index(row.case) + number * height for row in mine]
        errors: Any = [
            [_number(row.over) - _number(row.over_q1) for row in mine],
            [_number(row.over_q3) - _number(row.over) for row in mine],
        ]
        axes.barh(at, [_number(row.over) for row in mine], height, xerr=errors, color=colour, label=side)
    first = [row for row in rows if row.over is None and row.roof]
    if first:
        axes.plot([_number(row.roof) for row in first], [cases.index(row.case) for row in first], "|", ms=12,
                  color=ROOF, label="floor")  # fmt: skip
    axes.axvline(1, color=COLOURS[0], label=rows[0].side if rows else "")
    axes.axvline(1.5, color=COLOURS[0], lw=0.8, ls=":", label="1.5x")
    axes.set_yticks([i + height * (len(others) - 1) / 2 for i in range(len(cases))], cases, fontsize=8)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel=f"times the time of {rows[0].side if rows else 'nothing'}")
    low, high = axes.get_xlim()
    axes.set_xticks([tick for tick in TICKS if low <= tick <= high])
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(_plain)
    axes.legend(fontsize=8)


def _ms(us: float | None) -> float:
    return _number(us) / 1e3


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _plain(value: float, _: int) -> str:
    return f"{value:g}"


def _tick(value: float, _: int) -> str:
    for size, letter in ((1 << 20, "M"), (1 << 10, "K")):
        if value >= size and value % size == 0:
            return f"{value / size:.0f}{letter}"
    return f"{value:g}"
