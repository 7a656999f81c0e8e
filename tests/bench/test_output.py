"""Files that a run leaves: CSV, a picture, a page that loads nothing."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from dsv4core.bench import page, plot
from dsv4core.bench.measure import Row
from dsv4core.bench.output import ABOUT, COLUMNS, write_csv
from dsv4core.bench.timing import machine

ABOUT_RUN = {
    "clock": "wall",
    "machine": machine({"cpu": "cpu"}),
    "floors": {"cpu": {"copy_gb_s": 20.0, "gemm_gflop_s": 200}},
    "command": "dsv4core bench --cases <x>",
}
ROW = Row(
    "decode <1>", "sparse_decode", "cpu", "native", True, "1e-4 <= 4e-3", 10.0, 9.0, 11.0, 5, 200,
    None, None, None, 1000.0, 2000.0, 5.0, 0.5, {"tokens": 1, "heads": 64},
)  # fmt: skip
PEER = replace(ROW, side="peer", over=2.0, over_q1=1.9, over_q3=2.1)
WRONG = Row("decode <1>", "sparse_decode", "wrong", "x", False, "2 of 8 bytes differ")
ROWS = [ROW, PEER, WRONG]


def test_every_line_of_the_csv_can_stand_alone(tmp_path: Path) -> None:
    write_csv(tmp_path / "x.csv", ROWS, ABOUT_RUN)
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == [*COLUMNS, *ABOUT]
    assert [row["side"] for row in found] == ["cpu", "peer", "wrong"]
    assert (
        found[0]["facts"] == "tokens=1 heads=64" and found[1]["over"] == "2.0" and found[2]["median_us"] == ""
    )
    assert all(row["copy_gb_s"] == "20.0" and row["command"] == ABOUT_RUN["command"] for row in found)


def test_bars_and_curves_are_pictures() -> None:
    pytest.importorskip("matplotlib")
    on_curve = [
        replace(row, curve="decode", x="tokens", facts={"tokens": n}) for row in (ROW, PEER) for n in (1, 8)
    ]
    for rows in (ROWS, on_curve, [ROW], [WRONG]):
        assert plot.png(rows, "title").startswith(b"\x89PNG")


def test_the_page_loads_nothing_and_shows_every_row() -> None:
    text = page.html(ROWS, ABOUT_RUN, b"\x89PNG", "a & b")
    assert "decode &lt;1&gt;" in text and "a &amp; b" in text and "--cases &lt;x&gt;" in text
    assert "2.00 (1.90 .. 2.10)" in text and "no time" in text and "2 of 8 bytes differ" in text
    assert "http" not in text and 'src="data:image/png;base64,' in text and "<script" not in text
