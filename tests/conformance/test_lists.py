"""The case list and the catalogue: what is written down is what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import toy

from dsv4core_conformance import caselist, catalogue
from dsv4core_conformance.case import FAMILIES, LEVELS, Case, load_cases

ROWS = catalogue.rows()
REGENERATE = "python -m dsv4core_conformance.caselist"


@pytest.fixture
def cases() -> dict[str, Case]:
    return dict(load_cases())


def test_case_list_is_current(cases: dict[str, Case]) -> None:
    listed, now = caselist.names(), sorted(cases)
    gone, new = sorted(set(listed) - set(now)), sorted(set(now) - set(listed))
    assert listed == now, f"{REGENERATE} (gone: {gone[:5]}, new: {new[:5]})"
    assert caselist.version() >= 1
    assert caselist.FILE.read_text() == caselist.render(now, caselist.version())


def test_names_are_stable_words(cases: dict[str, Case]) -> None:
    for name, case in cases.items():
        assert re.fullmatch(r"(layout|op|layer|suite)(/[A-Za-z0-9_.+-]+){2,}", name), name
        assert case.id == name and case.family in FAMILIES and case.level in LEVELS
        assert case.summary.endswith(".") and case.limit > 0, name


def test_an_id_that_goes_is_a_new_version() -> None:
    assert caselist.next_version([], ["a"], 0) == 1
    assert caselist.next_version(["a"], ["a", "b"], 1) == 1
    assert caselist.next_version(["a", "b"], ["a", "c"], 1) == 2


def test_writing_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caselist, "FILE", tmp_path / "list.txt")
    assert caselist.names() == [] and caselist.version() == 0
    toy.use(["suite/det/pass", "op/linear/det/pass"])
    caselist.main([])
    assert (tmp_path / "list.txt").read_text() == "# version 1\nop/linear/det/pass\nsuite/det/pass\n"
    toy.use(["suite/det/pass"])
    caselist.main([])
    assert (caselist.version(), caselist.names()) == (2, ["suite/det/pass"])
    caselist.main(["--version", "9"])
    assert caselist.version() == 9


def test_the_catalogue_is_whole() -> None:
    """164 rows in 14 groups, as many in each as the catalogue counts; each with a family or with a reason."""
    groups = {"A": 17, "B": 12, "C": 11, "D": 15, "E": 16, "F": 9, "G": 10, "H": 10, "I": 9, "J": 10, "K": 16,
              "L": 11, "M": 11, "N": 7}  # fmt: skip
    assert [row.id for row in ROWS] == [f"{group}{i + 1}" for group, n in groups.items() for i in range(n)]
    assert list(catalogue.GROUPS) == list(groups)
    for row in ROWS:
        assert bool(row.families) != bool(row.reason), row.id
        assert (
            set(row.families) <= set(FAMILIES) and len(row.title) > 10 and "|" not in row.title + row.reason
        )
    assert {name for row in ROWS for name in row.families} == set(FAMILIES)


@pytest.mark.parametrize("row", [row for row in ROWS if row.families], ids=lambda row: row.id)
def test_every_bug_with_a_family_has_a_case_of_it(row: catalogue.Row, cases: dict[str, Case]) -> None:
    found = [case.id for case in catalogue.cases_of(cases.values())[row.id] if case.family in row.families]
    assert found, f"no case of {' or '.join(row.families)} catches {row.id}: {row.title}"


def test_cases_name_rows_that_exist(cases: dict[str, Case]) -> None:
    assert catalogue.unknown(cases.values()) == {}


def test_the_document_is_current(cases: dict[str, Case]) -> None:
    assert catalogue.DOCUMENT.read_text() == catalogue.markdown(cases), (
        "python -m dsv4core_conformance.catalogue"
    )


def test_document_rows() -> None:
    found = {
        name: toy.make(name, toy.passes, family=family, catches=("A1",))
        for name, family in (*((f"a/{i}", "cross") for i in (1, 2, 3, 4)), ("b/1", "predec"), ("c/1", "det"))
    }
    text = catalogue.markdown(found)
    assert "| CROSS, PREDEC | `a/1`, `b/1`, `a/2` and 3 more |" in text
    assert re.search(r"\| K5 \|.*\| none \| no family in the catalogue; ", text)
    assert "1 of them have cases" in text and text.count("\n| ") == 164 + 14
    only = {"c/1": found["c/1"]}
    assert catalogue.gaps(only.values())["A1"] == ("cross", "predec") and "K5" not in catalogue.gaps(
        only.values()
    )
    odd = toy.make("x/1", toy.passes, catches=("Z9",))
    assert catalogue.unknown([odd]) == {"Z9": ["x/1"]}
