"""What was read in aiter's source, held against the stand-in and, where there is one, a checkout."""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path

import aiter_record
import pytest

from dsv4core_rocm.aiter import entries
from dsv4core_rocm.aiter.entries import ENTRIES, recorded

CHECKOUT = os.environ.get("DSV4CORE_AITER_PATH", "")
needs_checkout = pytest.mark.skipif(not CHECKOUT, reason="DSV4CORE_AITER_PATH names no checkout of aiter")


@pytest.mark.usefixtures("fake_aiter")
@pytest.mark.parametrize("name", ENTRIES)
def test_the_stand_in_has_aiters_signatures(name: str) -> None:
    function = getattr(importlib.import_module(ENTRIES[name]), name)
    assert entries.parameters(function) == recorded()["entries"][name]["parameters"]


def test_the_stand_in_cites_what_was_read() -> None:
    known, cited = recorded("conventions")["lines"], set()
    for file in (Path(__file__).parent / "fake").rglob("*.py"):
        cited |= set(re.findall(r'"((?:decode|prefill|logits|topk)\.\w+)"', file.read_text()))
    assert cited and cited <= set(known)


@needs_checkout
def test_signatures_are_those_of_the_checkout() -> None:
    here = aiter_record.signatures(Path(CHECKOUT))
    for name, said in recorded()["entries"].items():
        assert here[name]["parameters"] == said["parameters"], name


@needs_checkout
def test_lines_are_those_of_the_checkout() -> None:
    """Only on the commit that was read: later ones move lines, and then these have to be read again."""
    for name, said in recorded("conventions")["lines"].items():
        assert aiter_record.line_hash(Path(CHECKOUT), said["file"], said["line"]) == said["sha"], name


@pytest.mark.usefixtures("fake_aiter")
def test_another_signature_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(ENTRIES["top_k_per_row_prefill"])
    monkeypatch.setattr(module, "top_k_per_row_prefill", lambda logits, k: None)
    found = entries.load()
    assert "top_k_per_row_prefill" not in found.functions and found.fake
    assert "it takes (logits, k)" in found.why_not("top_k_per_row_prefill")


@pytest.mark.usefixtures("fake_aiter")
def test_a_module_that_cannot_be_imported_costs_its_entry_only(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def broken(name: str) -> object:
        if name == ENTRIES["pa_decode_sparse"]:
            raise SystemExit("ROCm version file not found")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", broken)
    found = entries.load()
    assert "SystemExit: ROCm version file not found" in found.why_not("pa_decode_sparse")
    assert "fp8_mqa_logits" in found.functions


def test_without_aiter_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "module_exists", lambda name: False)
    monkeypatch.setattr(importlib, "import_module", lambda name: pytest.fail(name))
    assert entries.load().why_not("pa_decode_sparse") == "aiter is not installed"
