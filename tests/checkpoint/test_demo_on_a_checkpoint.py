"""`dsv4core demo --weights` on a sharded directory and on a single file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsv4core.checkpoint import write_synthetic
from dsv4core.cli import main
from dsv4core.config import AttentionConfig

TINY = AttentionConfig.preset("tiny")


def test_directory_with_a_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_synthetic(tmp_path / "model", TINY, [0, 1], names="hf", shard_bytes=300_000)
    assert main(["demo", "--backend", "cpu", "--weights", str(path), "--layer", "1"]) == 0
    out, err = capsys.readouterr()
    assert "model/config.json dimensions" in out and "\nok: " in out
    assert "layer 1 weights    [############################] 481634/481634" in err


def test_single_file_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_synthetic(tmp_path / "model", TINY, [2], scale="f32") / "model.safetensors"
    assert main(["demo", "--json", "--backend", "cpu", "--weights", str(path), "--layer", "2"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["failures"] == [] and report["layers"]["2"]["reference_error"] < 1.2e-2
    (path.parent / "config.json").unlink()
    assert main(["demo", "--weights", str(path), "--layer", "2"]) == 1  # V4-Flash is expected now
    assert "wq_a is [24, 64], expected [1024, 4096]" in capsys.readouterr().err


def test_what_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--weights", str(tmp_path / "none"), "--layer", "0"]) == 2
    assert "none does not exist; expected a .safetensors file or a directory" in capsys.readouterr().err
    assert main(["demo", "--weights", str(tmp_path)]) == 2
    assert "--weights and --layer go together" in capsys.readouterr().err
