"""The report of a run: its JSON, its page."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import dsv4core
from dsv4core.errors import ConfigError
from dsv4core.layout import get_layout
from dsv4core.ops import OPS
from dsv4core.spec import Deviation
from dsv4core_conformance.report import build, html, pagemap, plot, record, summary
from dsv4core_conformance.result import OUTCOMES, CaseResult

NAMES = [
    "suite/det/pass",
    "op/linear/det/pass",
    "op/linear/det/fail",
    "layout/fp8_ds_mla/insert/pad",
    "suite/det/crash",
    "suite/race/streams",
    "suite/det/unclaimed",
    "op/toy_op/det/portable",
]


@pytest.fixture
def found(suite: Callable, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("DSV4CORE_CHECK", "1")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/somewhere")
    monkeypatch.setenv("TRITON_PRINT_AUTOTUNING", "0")
    declared = [
        Deviation("suite/det/crash", "never", "no <kernel>", devices=("*",), url="https://example.org/1")
    ]
    return suite(NAMES, "--level", "core", declared=declared).report


def test_schema(found: dict[str, Any]) -> None:
    assert found["schema"] == 1
    assert set(found) == {
        "schema", "suite", "backend", "device", "tier", "level", "complete", "verdict", "exit_code", "totals",
        "versions", "python", "platform", "git", "environment", "command", "started", "seconds", "bounds",
        "deviations", "cases",
    }  # fmt: skip
    assert found["suite"]["version"] == dsv4core.__version__ and found["suite"]["cases"] == len(NAMES)
    assert len(found["suite"]["case_list_sha256"]) == 64
    backend = found["backend"]
    assert (
        backend["name"] == "cpu" and backend["layouts"]["fp8_ds_mla"] == get_layout("fp8_ds_mla").fingerprint
    )
    assert list(backend["ops"]) == list(OPS) and set(backend["own_ops"]) <= set(OPS)
    assert found["device"]["name"] and found["device"]["torch"] == "cpu"
    assert found["versions"]["torch"] and found["versions"]["pytest"]
    assert found["bounds"]["linear"] == {"kind": "matmul", "bound": 4e-3}
    assert found["totals"] == {
        "pass": 2, "fail": 2, "declared": 1, "portable": 1, "unclaimed": 1, "not run": 1
    }  # fmt: skip
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]+\+00:00", found["started"])


def test_environment_holds_what_can_change_a_result(found: dict[str, Any]) -> None:
    environment = found["environment"]
    assert environment["DSV4CORE_CHECK"] == "1" and environment["DSV4CORE_FALLBACK"] == "error"
    assert environment["TRITON_PRINT_AUTOTUNING"] == "0" and "TRITON_CACHE_DIR" not in environment


def test_command_leaves_out_where_files_go(found: dict[str, Any]) -> None:
    assert found["command"].endswith("--pyargs dsv4core_conformance --backend cpu --level core")
    words = ["--report", "a b.json", "--html=x", "--case", "op/*", "--junitxml", "j.xml", "-x"]
    assert build.command(words) == "python -m pytest --case 'op/*' -x"


def test_errors_and_facts(found: dict[str, Any]) -> None:
    cases = {values["id"]: values for values in found["cases"]}
    assert cases["op/linear/det/pass"]["errors"] == {"linear": 1e-3}
    assert cases["op/linear/det/fail"]["errors"] == {"linear": 8e-3}
    assert cases["op/linear/det/fail"]["facts"] == {"ratio": 2.0}
    assert cases["suite/det/pass"].keys() == {"id", "family", "level", "outcome", "seconds", "errors"}


def test_failures_say_where_from_without_a_machine_path(suite: Callable) -> None:
    detail = suite(["suite/det/pass", "suite/det/crash"]).case("suite/det/crash")["detail"]
    assert detail.startswith("ValueError: no such kernel\n")
    assert str(Path(record.__file__).parents[2]) not in detail


def test_round_trip(found: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "a" / "b.json"
    record.save(found, file)
    again = record.load(file)
    assert again == found
    record.save(again, tmp_path / "c.json")
    assert (tmp_path / "c.json").read_bytes() == file.read_bytes()
    for values, result in zip(found["cases"], record.results(again), strict=True):
        assert values.items() <= result.as_dict().items()
        assert CaseResult.from_dict(result.as_dict()) == result == CaseResult.from_dict(values)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}', '{"schema": 2}', "no json"])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ConfigError, match=r"x\.json"):
        record.load(tmp_path / "x.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        record.load(tmp_path / "missing.json")


def test_only_the_first_failing_pages_keep_their_bytes() -> None:
    results = [
        CaseResult(f"a/{i}", "bytes", "layout", "fail", 0.0, facts={"page": 1, "page_hex": "a5"})
        for i in range(40)
    ]
    kept = ["page_hex" in values["facts"] for values in build._cases(results)]
    assert sum(kept) == build.PAGES_KEPT and all(kept[: build.PAGES_KEPT])


class Reader(HTMLParser):
    """Notes what a browser would load, and checks that elements close."""

    VOID = ("meta", "rect", "line", "circle", "br")

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []
        self.labelled = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("script", "link", "img", "iframe", "object", "embed", "video", "audio", "source", "base"):
            self.loads.append(tag)
        self.loads += [
            value for name, value in attrs if name in ("src", "srcset", "xlink:href", "background")
        ]
        self.links += [values["href"] or ""] if tag == "a" else []
        self.labelled += tag == "svg" and values.get("role") == "img" and bool(values.get("aria-label"))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in self.VOID or self.open.pop() == tag, tag


def test_page_is_self_contained_and_well_formed(found: dict[str, Any]) -> None:
    page = html.render(found)
    reader = Reader()
    reader.feed(page)
    assert reader.loads == [] and reader.open == [] and "url(" not in page and "@import" not in page
    assert reader.links == ["https://example.org/1"]
    assert reader.labelled == page.count("<svg") >= 3
    assert "prefers-color-scheme: dark" in page and '<html lang="en">' in page and len(page) < 300_000


def test_page_shows_what_matters(found: dict[str, Any]) -> None:
    page = html.render(found)
    for name in OUTCOMES:
        assert name in page
    assert "no &lt;kernel&gt;" in page and "<kernel>" not in page
    assert "byte 36,871, row 0, scale_pad[0]: expected 00, got a5" in page
    assert "op/linear/det/fail: 2 of the bound" in page
    assert page.count("<details") == 2
    assert summary.reproduce(found, "op/linear/det/fail").replace("'", "&#x27;") in page


def test_page_of_a_run_without_failures(suite: Callable) -> None:
    page = html.render(suite(["suite/race/streams"]).report)
    assert "<p>None.</p>" in page and "None declared." in page and "No case with a bound" in page


def test_failures_show_every_kind_before_more_of_one() -> None:
    names = ["a/1", "a/2", "b/1", "a/3", "b/2"]
    failed = [CaseResult(name, name[0], "core", "fail", 0.0) for name in names]
    shown = [result.id for result in summary.failures([*failed, CaseResult("c/1", "c", "core", "pass", 0.0)])]
    assert shown == ["a/1", "b/1", "a/2", "b/2", "a/3"]


def test_html_option(suite: Callable, tmp_path: Path) -> None:
    ran = suite(NAMES, "--html", str(tmp_path / "deep" / "page.html"))
    assert (tmp_path / "deep" / "page.html").read_text() == html.render(ran.report)
    assert "page.html" in ran.out


def facts(**more: Any) -> dict[str, Any]:
    plain = {
        "layout": "fp8_ds_mla", "rows": 64, "page": 3, "byte": 5, "expected": "00", "got": "7f", "differ": 1,
        "page_bytes": 37_440, "ranges": [[5, 5]], "page_hex": "a5" * 37_440,
    }  # fmt: skip
    return plain | more


def test_page_map_marks_every_wrong_run() -> None:
    drawn = pagemap.draw(facts(ranges=[[5, 5], [600, 640], [37_400, 37_439]], differ=82))
    assert drawn.count("fill:var(--mark)") == 3
    assert "e4m3fn, 42 wrong" in drawn and "never written, 40 wrong" in drawn
    assert "82 of them wrong" in drawn and "… 60 lines" in drawn


def test_page_map_of_a_page_wrong_everywhere_stays_small() -> None:
    drawn = pagemap.draw(facts(ranges=[[0, 37_439]], differ=37_440))
    assert len(drawn) < 100_000 and "lines</text>" in drawn


def test_page_map_without_bytes_or_layout() -> None:
    assert pagemap.draw({}) == "" and pagemap.draw({"ratio": 2.0}) == ""
    short = facts()
    del short["page_hex"]
    assert "expected 00, got 7f" in pagemap.draw(short) and "class=mono" not in pagemap.draw(short)
    assert "cannot be drawn" in pagemap.draw(facts(layout="theirs"))


@pytest.mark.parametrize("name", ["index_fp8", "index_mxfp4", "bf16_row", "fp8_row", "index_f32"])
def test_page_map_of_every_kind_of_layout(name: str) -> None:
    size = get_layout(name).page_bytes(64)
    assert "<svg" in pagemap.draw(facts(layout=name, page_bytes=size, ranges=[[size - 1, size - 1]]))


def test_plot_places_errors_by_decade() -> None:
    points = [
        plot.Point(f"c{i}", ratio, ratio > 1) for i, ratio in enumerate([0.0, 1e-9, 1e-2, 0.99, 2.0, 1e12])
    ]
    drawn = plot.errors({"sparse_decode": points})
    places = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', drawn)]
    assert (
        len(places) == 6
        and sorted(places)[0] >= plot.LEFT - plot.CELL
        and max(places) <= plot.RIGHT + plot.CELL
    )
    assert drawn.count("--fail") == 2 and "6 cases, median" in drawn
    assert plot.errors({"linear": points * 100}).count("<circle") == 0


def test_reports_hold_no_infinity(found: dict[str, Any]) -> None:
    wild = copy.deepcopy(found)
    wild["seconds"] = float("inf")
    with pytest.raises(ValueError, match="Out of range"):
        json.dumps(wild, allow_nan=False)
    json.dumps(found, allow_nan=False)
