"""Files and sharded directories under both sets of names: what is read, how much, and every refusal."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dsv4core.checkpoint import Checkpoint, write_synthetic
from dsv4core.checkpoint.reader import INDEX
from dsv4core.config import AttentionConfig
from dsv4core.errors import ConfigError, WeightsError
from dsv4core.linear import QuantisedWeight
from dsv4core.parallel import TensorParallel
from dsv4core.tensor_names import FACTOR, QUANTISABLE, SCALE, expected_shapes
from dsv4core.weights import AttentionWeights

TINY = AttentionConfig.preset("tiny")
LIMIT = 150_000


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("ckpt") / "new", TINY, [0, 1, 2], shard_bytes=LIMIT)


@pytest.fixture
def copy(sharded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sharded, tmp_path / "copy"))


@pytest.mark.parametrize("names", ["deepseek", "hf"])
@pytest.mark.parametrize(("format", "scale"), [("fp8_block", "ue8m0"), ("fp8_block", "f32"), ("bf16", "f32")])
@pytest.mark.parametrize("limit", [LIMIT, 1 << 30])
def test_round_trip(tmp_path: Path, names: str, format: str, scale: str, limit: int) -> None:
    path = write_synthetic(
        tmp_path / "x", TINY, [1, 2], 5, format=format, scale=scale, names=names, shard_bytes=limit
    )
    files = sorted(path.glob("*.safetensors"))
    assert (len(files) > 1) == (limit == LIMIT) == (path / INDEX).exists()
    checkpoint = Checkpoint.open(path)
    assert checkpoint.layers() == (1, 2) and checkpoint.config() == TINY
    assert any(n.startswith("model.layers.1.self_attn.q_a_proj.") for n in checkpoint.names) == (
        names == "hf"
    )
    for layer in (1, 2):
        drawn = AttentionWeights.random(TINY, layer, 5).state_dict()
        weights = AttentionWeights.from_checkpoint(path, TINY, layer)
        assert isinstance(weights.wo_a, QuantisedWeight) == (format == "fp8_block")
        for name, tensor in weights.dequantised().state_dict().items():
            if tensor.dtype == drawn[name].dtype:
                assert torch.equal(tensor, drawn[name])
            else:  # three bits of fraction
                assert float((tensor - drawn[name].float()).norm() / drawn[name].float().norm()) < 0.04
    if limit != LIMIT:
        same = AttentionWeights.from_checkpoint(files[0], TINY, 1).state_dict()
        assert all(
            torch.equal(same[n].float(), t.float())
            for n, t in AttentionWeights.from_checkpoint(path, TINY, 1).state_dict().items()
        )


def test_scales_as_plain_bytes(copy: Path) -> None:
    before = AttentionWeights.from_checkpoint(copy, TINY, 0).dequantised().state_dict()
    for file in copy.glob("*.safetensors"):
        tensors = load_file(file)
        save_file({n: t.view(torch.uint8) if n.endswith("scale") else t for n, t in tensors.items()}, file)
    weights = AttentionWeights.from_checkpoint(copy, TINY, 0)
    assert isinstance(weights.wq_b, QuantisedWeight) and weights.wq_b.scales.dtype == torch.uint8
    assert all(torch.equal(t, before[n]) for n, t in weights.dequantised().state_dict().items())


def test_only_the_shards_of_the_layer_are_opened(copy: Path) -> None:
    wanted = {f for n, f in Checkpoint.open(copy).names.items() if n.startswith("layers.0.")}
    for file in copy.glob("*.safetensors"):
        if file not in wanted:
            file.write_bytes(b"not opened")
    seen: list[tuple[str, int, int]] = []
    weights = AttentionWeights.from_checkpoint(copy, TINY, 0, progress=lambda *a: seen.append(a))
    size = sum(t.nbytes for t in weights.state_dict().values())
    assert seen[-1] == ("layer 0 weights", size, size) and [d for _, d, _ in seen] == sorted(
        d for _, d, _ in seen
    )
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        AttentionWeights.from_checkpoint(copy, TINY, 2)


def test_a_given_prefix(tmp_path: Path) -> None:
    tensors = {f"mtp.0.attn.{n}": t for n, t in AttentionWeights.random(TINY, 0).state_dict().items()}
    save_file(tensors, tmp_path / "draft.safetensors")
    AttentionWeights.from_checkpoint(tmp_path, TINY, 0, prefix="mtp.0.attn.")
    with pytest.raises(
        WeightsError,
        match=r"no attention of layer 0 \(names like layers.0.attn.wq_a.weight\); it has no layer",
    ):
        AttentionWeights.from_checkpoint(tmp_path, TINY, 0)


@pytest.mark.parametrize("prefix", ["mtp.0.attn", "mtp.0.attn."])
@pytest.mark.parametrize("place", [None, TensorParallel(1, 2)])
def test_a_dot_behind_a_prefix_changes_nothing(
    tmp_path: Path, prefix: str, place: TensorParallel | None
) -> None:
    """Neither what is found nor what is read: "mtp.0.attn_norm" begins with the same letters."""
    drawn = AttentionWeights.random(TINY, 0)
    tensors = {f"mtp.0.attn.{n}": t for n, t in drawn.state_dict().items()}
    size = sum(t.nbytes for t in (drawn if place is None else drawn.sharded(place)).state_dict().values())
    tensors["mtp.0.attn_norm.weight"] = torch.ones(1000)
    save_file(tensors, tmp_path / "draft.safetensors")
    read: list[tuple[str, int, int]] = []
    found = AttentionWeights.from_checkpoint(
        tmp_path, TINY, 0, prefix=prefix, parallel=place, progress=lambda *given: read.append(given)
    )
    assert read[-1][1:] == (size, size)
    want = (drawn if place is None else drawn.sharded(place)).state_dict()
    assert all(torch.equal(tensor, want[name]) for name, tensor in found.state_dict().items())


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "is None"), ("values", "is a builtins.str"), (np.zeros((24, 64)), "is a numpy.ndarray")],
)
@pytest.mark.parametrize("name", ["wq_a", "wq_a.scale", "q_norm"])
def test_values_that_are_no_tensors(value: object, words: str, name: str) -> None:
    tensors = AttentionWeights.random(TINY, 0).state_dict()
    message = rf"^tensors behind 'p\.': p\.{name} {words}; a torch.Tensor is expected$"
    with pytest.raises(WeightsError, match=message):
        AttentionWeights.from_state_dict({f"p.{n}": t for n, t in {**tensors, name: value}.items()}, "p")
    with pytest.raises(WeightsError, match=rf"p\.{name} {words}"):
        AttentionWeights.from_state_dict({f"p.{name}": value}, "p")


def edit_index(path: Path, change) -> None:
    index = json.loads((path / INDEX).read_text())
    change(index["weight_map"])
    (path / INDEX).write_text(json.dumps(index))


def edit_tensors(path: Path, change) -> None:
    """Change the tensors of layer 0, wherever they lie, and put them into one file."""
    tensors = {n: t for file in sorted(path.glob("*.safetensors")) for n, t in load_file(file).items()}
    tensors = {n: t for n, t in tensors.items() if n.startswith("layers.0.")}
    shutil.rmtree(path)
    path.mkdir()
    change(tensors)
    save_file(tensors, path / "model.safetensors")


def refused(path: Path, layer: int, *words: str) -> None:
    with pytest.raises(WeightsError) as caught:
        AttentionWeights.from_checkpoint(path, TINY, layer)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_paths_that_hold_nothing(tmp_path: Path, copy: Path) -> None:
    refused(tmp_path / "none", 0, "none does not exist")
    for name in ("x" * 300, "x" * 5000, "a\0b"):
        refused(tmp_path / name, 0, "does not exist")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    refused(tmp_path / "pytorch_model.bin", 0, "never opened")
    (tmp_path / "d").mkdir()
    refused(tmp_path / "d", 0, f"no {INDEX}", "no .safetensors file")
    (copy / INDEX).unlink()
    refused(copy, 0, f"no {INDEX}", ".safetensors files; expected the index")
    (copy / "config.json").unlink()
    (copy / "model.safetensors").write_bytes(b"")
    refused(copy, 0, "model.safetensors cannot be read as safetensors")


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "{}", '{"weight_map": {}}', '{"weight_map": []}', "[" * 100_000, "\xff"]
)
def test_broken_indices(copy: Path, text: str) -> None:
    (copy / INDEX).write_text(text, encoding="latin-1")
    refused(copy, 0, INDEX)


@pytest.mark.parametrize("place", [
    "../model.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", "", "x.bin", 3, None,
    "..\\x.safetensors", "C:x.safetensors", "a\0.safetensors", ".safetensors",
])  # fmt: skip
def test_an_index_that_points_elsewhere(copy: Path, place: object) -> None:
    edit_index(copy, lambda table: table.update({"layers.9.other": place}))
    refused(copy, 0, INDEX, "layers.9.other", "in the same directory")


def test_a_shard_whose_name_no_system_takes(copy: Path) -> None:
    name = "x" * 300 + ".safetensors"
    edit_index(copy, lambda table: table.update({"layers.0.attn.q_norm.weight": name}))
    refused(copy, 0, f"{name} is missing; the index of")


@pytest.mark.parametrize("digits", ["9" * 5000, "\u0663", "1_0", "00"])
def test_layers_that_are_no_numbers(copy: Path, digits: str) -> None:
    places = {f"layers.{digits}.attn.wq_a.weight": "model.safetensors"}
    edit_index(copy, lambda table: table.update(places))
    checkpoint = Checkpoint.open(copy)
    assert checkpoint.layers() == (0, 1, 2)
    refused(copy, 7, "no attention of layer 7", "it has 0, 1, 2")


def test_shards_and_tensors_that_are_missing(copy: Path) -> None:
    checkpoint = Checkpoint.open(copy)
    victim = checkpoint.names["layers.0.attn.wo_b.weight"]
    edit_index(copy, lambda table: table.pop("layers.0.attn.wq_b.weight"))
    refused(copy, 0, "wq_b")
    edit_index(
        copy,
        lambda table: table.update(
            {"layers.0.attn.wq_b.weight": checkpoint.names["layers.2.attn.wo_b.weight"].name}
        ),
    )
    refused(copy, 0, "has no tensor 'layers.0.attn.wq_b.weight'")
    victim.unlink()
    refused(copy, 0, f"{victim.name} is missing")
    refused(copy, 7, "no attention of layer 7", "it has 0, 1, 2")


def test_every_truncation_is_refused(copy: Path) -> None:
    file = Checkpoint.open(copy).names["layers.0.attn.wo_b.weight"]
    whole = file.read_bytes()
    for size in (0, 1, 7, 8, 9, 50, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        refused(copy, 0, file.name, "cannot be read as safetensors")
    for header in (2**63, 2**31, len(whole), 0):
        file.write_bytes(header.to_bytes(8, "little") + whole[8:])
        refused(copy, 0, file.name)
    file.write_bytes(whole + b"tail")
    refused(copy, 0, file.name)
    file.write_bytes(b"PK\x03\x04 a pickle inside a zip archive")
    refused(copy, 0, file.name)


def test_a_file_cut_off_after_it_was_opened(copy: Path) -> None:
    checkpoint = Checkpoint.open(copy)
    file = checkpoint.names["layers.0.attn.wo_b.weight"]
    checkpoint._shard(file)
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(WeightsError, match=f"{file.name} ends inside"):
        checkpoint.attention(TINY, 0)


def put(name: str, tensor: torch.Tensor):
    return lambda tensors: tensors.update({f"layers.0.attn.{name}": tensor})


def drop(name: str):
    return lambda tensors: tensors.pop(f"layers.0.attn.{name}")


E4M3 = torch.float8_e4m3fn


@pytest.mark.parametrize(("change", "words"), [
    (drop("kv_norm.weight"), ("lack kv_norm",)),
    (drop("wq_a.scale"), ("wq_a.weight is float8_e4m3fn without scales",)),
    (drop("wq_a.weight"), ("wq_a.scale has no wq_a to scale",)),
    (put("extra.weight", torch.zeros(1)), ("extra.weight is not a tensor of an attention layer",)),
    (put("wq_a", torch.zeros(1)), ("is there twice",)),
    (put("wkv.weight", torch.zeros(512, 64).half()), ("wkv.weight is float16",)),
    (put("q_norm.weight", torch.zeros(25)), ("q_norm is [25], expected [24]",)),
    (put("q_norm.weight", torch.zeros(24).to(E4M3)), ("q_norm.weight is float8_e4m3fn; only",)),
    (put("wq_b.scale", torch.ones(16, 2)), ("wq_b.weight: the scales are float32 [16, 2]", "[16, 1]")),
    (put("wq_b.scale", torch.ones(64, 1)), ("one per 128 x 128 block",)),
    (put("wq_b.scale", torch.ones(16, 1).bfloat16()), ("the scales are bfloat16",)),
    (put("wo_a.weight", torch.zeros(4, 2).to(E4M3)), ("wo_a.weight",)),
    (put("compressor.ape", torch.zeros(4, 1024)), ("lack compressor.wkv",)),
])  # fmt: skip
def test_tensors_that_do_not_fit(copy: Path, change, words: tuple[str, ...]) -> None:
    edit_tensors(copy, change)
    refused(copy, 0, "model.safetensors", *words)


def test_types_torch_does_not_have(copy: Path) -> None:
    edit_tensors(copy, lambda t: None)
    file = copy / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["layers.0.attn.q_norm.weight"]["dtype"] = "U16"  # as wide as bf16
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    refused(copy, 0, "q_norm.weight is U16; expected BF16, F32, or F8_E4M3, U8 and I8 with scales")


def test_writer_refusals(tmp_path: Path, copy: Path) -> None:
    for name in ("format", "scale", "names"):
        with pytest.raises(WeightsError, match=f"{name} 'x' is not known"):
            write_synthetic(tmp_path / "y", TINY, [0], **{name: "x"})
    with pytest.raises(WeightsError, match="not an empty directory"):
        write_synthetic(copy, TINY, [0])
    with pytest.raises(WeightsError, match=r"no layers to write .* type some of range\(3\)"):
        write_synthetic(tmp_path / "z", TINY, [])
    assert not (tmp_path / "z").exists()
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        save_file({"layers.0.attn.wq_a": torch.zeros(1)}, tmp_path / "m.safetensors")
        Checkpoint.open(tmp_path / "m.safetensors").config()


MEASURE = """
import sys
from dsv4core.config import AttentionConfig
from dsv4core.weights import AttentionWeights
def memory(field):
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(field))
config = AttentionConfig.preset("v4-flash")
before = memory("VmRSS")
weights = AttentionWeights.from_checkpoint(sys.argv[1], config, int(sys.argv[2]))
total = sum(t.nbytes for t in weights.state_dict().values())
print((memory("VmHWM") - before) / total, total)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the high-water mark from /proc")
@pytest.mark.parametrize(("format", "bytes"), [("bf16", 200e6), ("nvfp4", 60e6), ("mxfp4", 60e6)])
def test_peak_memory_is_the_layer(tmp_path: Path, format: str, bytes: float) -> None:
    config = AttentionConfig.preset("v4-flash")
    kinds = {name: tensor.dtype for name, tensor in AttentionWeights.random(TINY, 1).state_dict().items()}
    group, scale = {"nvfp4": (16, torch.float8_e4m3fn), "mxfp4": (32, torch.uint8)}.get(format, (0, None))
    tensors: dict[str, torch.Tensor] = {}
    for layer, (name, shape) in product((2, 4), expected_shapes(config, 2).items()):
        place = f"layers.{layer}.attn.{name}"
        if not group or name not in QUANTISABLE:
            tensors[place] = torch.zeros(shape, dtype=kinds[name])
            continue
        rows, inputs = shape
        tensors[place] = torch.zeros(rows, inputs // 2, dtype=torch.uint8)
        tensors[place + SCALE] = torch.zeros(rows, inputs // group, dtype=torch.uint8).view(scale)
        if format == "nvfp4":
            tensors[place + FACTOR] = torch.ones(())
    save_file(tensors, tmp_path / "model.safetensors")
    out = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), "2"], capture_output=True, text=True, check=True
    )
    ratio, total = map(float, out.stdout.split())
    assert total > bytes and ratio <= 1.1, (ratio, total)


def test_damaged_files_never_end_otherwise(tmp_path: Path) -> None:
    """Bytes of the header and its length at random: our error, or weights of the right shapes."""
    rng = random.Random(0)
    file = write_synthetic(tmp_path / "x", TINY, [0]) / "model.safetensors"
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    refusals = 0
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(header)] = rng.choice(b'0123456789[]{}",:BF8U_x\x00\xff')
        file.write_bytes(data)
        try:
            AttentionWeights.from_checkpoint(file, TINY, 0).validate(TINY, 0)
        except WeightsError as error:
            refusals += str(file) in str(error)
    assert refusals > 450
