"""A run as one HTML page that loads nothing."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from dsv4core.bench.measure import Row
from dsv4core.bench.output import described

HEAD = [
    "case", "side", "comes from", "check", "median us", "quartiles us", "runs x calls", "times longer",
    "floor us", "floor / median",
]  # fmt: skip
INTRO = (
    "Every case was checked first, then the sides were timed in turns: medians and quartiles over the runs; "
    "“times longer” compares pairs of runs with the first side. The floor is what this machine's own copy "
    "and bf16 matrix product, measured in the same run, allow."
)


def html(rows: Sequence[Row], about: Mapping[str, Any], picture: bytes, title: str) -> str:
    """The page: the picture, every row, and how to repeat it."""
    from dsv4core_conformance.report import style  # the look of every page; not needed to measure

    said = described(about)
    facts = "".join(
        f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in said.items() if k != "command"
    )
    source = f"data:image/png;base64,{b64encode(picture).decode()}"
    image = f'<img alt="{escape(title)}" style="max-width:100%" src="{source}">'
    body = (
        f'<p class="over">dsv4core bench</p><h1>{escape(title)}</h1>'
        f"<p>{INTRO}</p>"
        f"<div style='background:#fff;border-radius:6px'>{image}</div>"
        f"<h2>Figures</h2>{style.table(HEAD, [_cells(row) for row in rows], numbers=6)}"
        f"<h2>How to repeat this run</h2><pre>{escape(said['command'])}</pre><dl>{facts}</dl>"
    )
    return style.page(f"dsv4core bench: {title}", body)


def _cells(row: Row) -> list[str]:
    head = [escape(row.case), escape(row.side), escape(row.provider), escape(row.check)]
    if row.median_us is None:
        return [*head, "no time", "", "", "", "", ""]
    return [
        *head,
        f"{row.median_us:,.1f}",
        f"{row.q1_us:,.1f} .. {row.q3_us:,.1f}",
        f"{row.runs} x {row.calls}",
        "" if row.over is None else f"{row.over:.2f} ({row.over_q1:.2f} .. {row.over_q3:.2f})",
        "" if row.roof_us is None else f"{row.roof_us:,.1f}",
        "" if row.roof is None else f"{row.roof:.0%}",
    ]
