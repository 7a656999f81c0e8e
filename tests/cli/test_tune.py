"""`dsv4core tune`: what it refuses before it measures anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsv4core.cli import main, tune


def test_a_folder_that_is_not_there_is_named_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", "--out", str(tmp_path / "none")]) == 2
    assert "none: there is no such folder" in capsys.readouterr().err


def test_without_triton_nothing_can_be_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tune, "module_exists", lambda _: False)
    assert main(["tune"]) == 4
    assert "'triton' is not installed" in capsys.readouterr().err


def test_a_torch_for_a_device_that_is_not_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr("dsv4core.kernels.triton._launch.interpreted", False)
    monkeypatch.setattr(tune, "accelerator", lambda: None)
    assert main(["tune"]) == 4
    assert "torch sees no accelerator here" in capsys.readouterr().err
