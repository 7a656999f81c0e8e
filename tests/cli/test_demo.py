"""`dsv4core demo`: wrong options end before the work begins, and a tiny run passes and can fail."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from pathlib import Path

import pytest
from safetensors.torch import save_file

from dsv4core import AttentionConfig, AttentionWeights
from dsv4core.cli import main

TEXT_SHA256 = "788af2bdb1ff3a1ad5f1cd52b7aef2a31d05f11820c3252497fe5a54d11e567a"


def checkpoint(path: Path, layer: int) -> Path:
    """A file with one layer under the names of a checkpoint."""
    weights = AttentionWeights.random(AttentionConfig.preset("tiny"), layer, seed=2)
    file = path / "model.safetensors"
    save_file({f"layers.{layer}.attn.{name}": part for name, part in weights.state_dict().items()}, file)
    return file


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layer", "2"], "--weights and --layer go together"),
        (["--weights", "model.safetensors"], "--weights and --layer go together"),
        (["--weights", "missing.safetensors", "--layer", "2"], "missing.safetensors cannot be read"),
        (["--weights", "text.safetensors", "--layer", "2"], "text.safetensors cannot be read"),
        (["--text", "empty.txt"], "empty.txt is empty"),
        (["--text", "missing.txt"], "missing.txt"),
        (["--preset", "v5"], "preset 'v5'"),
        (["--backend", "cpx"], "cpx"),
    ],
)
def test_wrong_options_are_usage_errors(
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").touch()
    Path("text.safetensors").write_text("these are no tensors")
    assert main(["demo", *words]) == 2
    assert message in capsys.readouterr().err


def test_weights_of_another_layer_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = checkpoint(tmp_path, 1)
    assert main(["demo", "--preset", "tiny", "--weights", str(file), "--layer", "2"]) == 1
    assert "WeightsError" in capsys.readouterr().err


def test_a_tiny_layer_from_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = checkpoint(tmp_path, 1)
    assert main(["demo", "--preset", "tiny", "--weights", str(file), "--layer", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    layer = report["layers"]["1"]
    assert report["failures"] == [] and layer["kind"] == "csa"
    assert layer["bytes_per_entry"] == {"swa": 584, "c4": 584, "indexer": 132}
    assert layer["decode_error"] <= 2e-3 and layer["reference_error"] <= 1.2e-2
    assert {key.partition(".")[0] for key in layer["caches"]} == {
        "swa", "c4", "indexer", "state_c4", "state_indexer",
    }  # fmt: skip
    assert all(seconds >= 0 for stage in layer["stages"].values() for seconds in stage.values())
    assert all("projections and the rest" in stage for stage in layer["stages"].values())


def test_a_corrupted_page_fails(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = checkpoint(tmp_path, 0)
    assert main(["demo", "--preset", "tiny", "--weights", str(file), "--layer", "0", "--corrupt"]) == 1
    printed = capsys.readouterr().out
    assert "FAILED layer 0 (swa): cache swa.0/long differs between chunks and one prefill" in printed


def test_the_default_text_is_the_one_the_pins_belong_to() -> None:
    """Another text means other hashes: restore it, or pin again (CONTRIBUTING.md)."""
    text = files("dsv4core.demo").joinpath("text.txt").read_bytes()
    assert hashlib.sha256(text).hexdigest() == TEXT_SHA256
