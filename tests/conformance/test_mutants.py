"""Mutants: the engine refuses what does not fit and restores the rest; every family has a failing backend."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from dsv4core.layout import get_layout
from dsv4core.numerics import e2m1, tables
from dsv4core.ops import OPS
from dsv4core.ops._attend import attend
from dsv4core.samples import sample
from dsv4core_conformance.case import FAMILIES, load_cases
from dsv4core_conformance.mutants.catalogue import MUTANTS
from dsv4core_conformance.mutants.engine import (
    MAX_LINES,
    Edit,
    Mutant,
    StaleMutantError,
    applied,
    changed_lines,
    compiled,
    resolve,
)
from dsv4core_conformance.mutants.permuted import permuted_subject
from dsv4core_conformance.mutants.runner import (
    Baseline,
    Report,
    baseline,
    examine,
    load_baseline,
    run_case,
    save_baseline,
)
from dsv4core_conformance.mutants.subjects import portable_subject

TARGET = "dsv4core.ops._attend:attend"
LOUD = Edit(TARGET, "        out.zero_()\n", "        out.fill_(7)\n")


@pytest.fixture(autouse=True)
def _settings_are_put_back(monkeypatch: pytest.MonkeyPatch):
    """The runner sets the environment of its process and its threads; other tests must not see that."""
    for name in ("DSV4CORE_FALLBACK", "DSV4CORE_CHECK"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # remembered, and with it that it was absent
        if not os.environ[name]:
            monkeypatch.delenv(name)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def mutant(*edits: Edit) -> Mutant:
    return Mutant("a_test", ("D5",), "empty", "*", "a test", edits)


def empty_output() -> float:
    out, lse = torch.zeros(1, 512), torch.zeros(1)
    attend(torch.zeros(1, 512), torch.zeros(0, 512), torch.zeros(1), 1.0, out, lse)
    return float(out[0, 0])


def test_every_mutant_fits_the_code_it_changes() -> None:
    for found in MUTANTS.values():
        compiled(found)  # raises for stale text, for too many lines and for code that does not compile


def test_there_are_mutants_of_every_theme_with_rows_of_their_own() -> None:
    assert len(MUTANTS) >= 60
    rows = {row for found in MUTANTS.values() for row in found.rows}
    assert {row[0] for row in rows} == set("ABCDEFGHIJKLMN")
    assert len(rows) >= 60
    assert len({found.summary for found in MUTANTS.values()}) == len(MUTANTS)


def test_every_family_has_a_backend_that_fails_it() -> None:
    assert {found.family for found in MUTANTS.values()} == set(FAMILIES)


def test_every_mutant_names_a_case_of_its_family() -> None:
    cases = load_cases()
    for found in MUTANTS.values():
        assert cases[found.case].family == found.family, found.name
        assert cases[found.case].level in ("layout", "core"), found.name


def test_text_that_is_not_there_is_refused() -> None:
    with pytest.raises(StaleMutantError, match="found 0 times"):
        compiled(mutant(Edit(TARGET, "no such text", "x")))


def test_text_that_is_there_twice_is_refused() -> None:
    with pytest.raises(StaleMutantError, match="expected once"):
        compiled(mutant(Edit(TARGET, "torch", "torch")))


def test_a_target_that_is_not_there_is_refused() -> None:
    for target in (
        "dsv4core.ops._attend:nothing",
        "dsv4core.nothing:attend",
        "dsv4core.ops._attend:ATTENTION",
    ):
        with pytest.raises(StaleMutantError):
            resolve(target)


def test_eleven_changed_lines_are_refused() -> None:
    ten = "".join(f"        x{n} = {n}\n" for n in range(MAX_LINES))
    with applied(mutant(Edit(TARGET, "        out.zero_()\n", ten))):
        pass
    with pytest.raises(StaleMutantError, match="11 changed lines"):
        compiled(mutant(Edit(TARGET, "        out.zero_()\n", ten + "        y = 1\n")))


def test_no_change_and_no_python_are_refused() -> None:
    with pytest.raises(StaleMutantError, match="nothing is changed"):
        compiled(mutant(Edit(TARGET, "out.zero_()", "out.zero_()")))
    with pytest.raises(StaleMutantError):
        compiled(mutant(Edit(TARGET, "out.zero_()", "out.zero_(")))


def test_lines_are_counted_on_the_longer_side() -> None:
    assert changed_lines("a\nb\nc\n", "a\nx\ny\nc\n") == 2
    assert changed_lines("a\nb\nc\n", "a\nc\n") == 1


def test_a_fault_is_seen_by_every_holder_and_ends_with_the_block() -> None:
    before = OPS["sparse_prefill"].body
    assert empty_output() == 0
    with applied(mutant(LOUD)):
        assert empty_output() == 7
        arguments = sample("sparse_prefill")
        arguments["lens"].zero_()
        portable_subject().call("sparse_prefill", arguments)
        assert float(arguments["out"].float().max()) == 7
    assert empty_output() == 0
    assert OPS["sparse_prefill"].body is before


def test_a_fault_ends_when_the_block_raises() -> None:
    with pytest.raises(KeyError), applied(mutant(LOUD)):
        raise KeyError
    assert empty_output() == 0


def test_methods_properties_and_remembered_results_are_changed_too() -> None:
    layout, values = get_layout("index_mxfp4"), torch.linspace(-3, 3, 128).bfloat16()[None]
    record = layout.encode(values)
    with applied(MUTANTS["mxfp4_scales_interleaved"]):
        changed = layout.encode(values * torch.arange(1, 129))
    assert not torch.equal(changed, layout.encode(values * torch.arange(1, 129)))
    assert torch.equal(record, layout.encode(values))
    table = tables.cos_sin(1e4, None, 8).clone()
    with applied(mutant(Edit("dsv4core.numerics.tables:_rows", "angle.cos()", "angle.sin()"))):
        assert not torch.equal(tables.cos_sin(1e4, None, 8), table)
    assert torch.equal(tables.cos_sin(1e4, None, 8), table)
    whole = e2m1.values(torch.device("cpu")).clone()
    with applied(mutant(Edit("dsv4core.numerics.e2m1:values", "(-m for", "(m for"))):
        assert not torch.equal(e2m1.values(torch.device("cpu")), whole)
    assert torch.equal(e2m1.values(torch.device("cpu")), whole)


def small_suite() -> dict[str, Baseline]:
    """A few cheap cases as the runner knows them."""
    cases = load_cases()
    names = [name for name in cases if name.startswith(("op/sparse_prefill/sink/", "op/indexer_topk/topk/"))][
        :12
    ]
    names += [name for name in cases if name.startswith("op/sparse_prefill/sink/")][:4]
    targets = [target for found in MUTANTS.values() for target in found.targets]
    return baseline([cases[name] for name in dict.fromkeys(names)], list(dict.fromkeys(targets)))


def test_the_runner_tells_caught_from_surviving() -> None:
    known = small_suite()
    assert {base.outcome for base in known.values()} == {"pass"}
    ignored = replace(MUTANTS["prefill_ignores_sinks"], case="op/sparse_prefill/sink/*")
    caught = examine(ignored, known, everything=True)
    assert "/sink/" in caught.caught_by and "out of token" in caught.detail
    harmless = replace(
        ignored,
        edits=(Edit("dsv4core.ops.sparse_prefill:sparse_prefill", "scale, out[t]", "scale * 1.0, out[t]"),),
    )
    survivor = examine(harmless, known)
    assert survivor.problems == ["survives its case of family sink"] and survivor.passing == 1
    loud = replace(
        ignored,
        edits=(Edit("dsv4core.ops.sparse_prefill:sparse_prefill", "rows[same:])", "rows[same:] + 10**9)"),),
    )
    assert "raises in" in examine(loud, known).problems[0]


def test_a_case_that_was_not_run_counts_as_failed() -> None:
    report = Report("x", ("A1",), "sink", "case", "", 0.79, 1, (), ())
    assert report.problems == ["only 79% of the cases are known to pass"]


def test_a_baseline_is_kept_for_the_same_sources_only(tmp_path) -> None:
    known = {"a": Baseline("pass", 0.5, frozenset({TARGET}))}
    save_baseline(tmp_path / "kept.json", known)
    assert load_baseline(tmp_path / "kept.json") == known
    text = (tmp_path / "kept.json").read_text().replace('"sources": "', '"sources": "0')
    (tmp_path / "kept.json").write_text(text)
    assert load_baseline(tmp_path / "kept.json") is None


PERMUTED = (
    "op/sparse_decode/*/*", "op/sparse_prefill/*/*", "op/sparse_indexer/*", "op/indexer_*", "op/linear/*",
    "op/grouped_output_projection/*", "op/fused_q_kv_rmsnorm/*", "layer/*/predec/*", "layer/*/spec/*",
)  # fmt: skip


def test_a_permuted_but_correct_backend_passes() -> None:
    """A slice of every family; `python -m dsv4core_conformance.mutants` runs all of it."""
    from fnmatch import fnmatchcase

    subject = permuted_subject()
    chosen = [
        case
        for case in load_cases().values()
        if case.level != "extended" and any(fnmatchcase(case.id, glob) for glob in PERMUTED)
    ]
    for case in chosen[:: max(len(chosen) // 60, 1)]:
        outcome, detail = run_case(subject, case)
        assert outcome in ("pass", "not run"), f"{case.id}: {detail}"
