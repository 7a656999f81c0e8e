"""Synthetic checkpoints in the released formats, small enough for tests and demonstrations."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from dsv4core.checkpoint.reader import INDEX, SINGLE
from dsv4core.config import AttentionConfig
from dsv4core.errors import WeightsError
from dsv4core.linear import FORMATS as STORED
from dsv4core.numerics import block_fp8, group_fp4
from dsv4core.tensor_names import (
    FACTOR,
    FLOAT32_NAMES,
    QUANTISABLE,
    RELEASED,
    SCALE,
    expected_shapes,
    prefixes,
    spelled,
)
from dsv4core.weights import AttentionWeights

FORMATS, SCALES, NAMES = ("fp8_block", "nvfp4", "mxfp4", "bf16"), ("ue8m0", "f32"), ("deepseek", "hf")
PROJECTIONS = {"released": RELEASED, "all": QUANTISABLE}
METHODS = {"nvfp4": {"quant_method": "modelopt", "quant_algo": "NVFP4"}, "mxfp4": {"quant_method": "mxfp4"}}
DEFAULT_SHARD_BYTES = 2 << 30


def write_synthetic(
    path: str | PathLike[str],
    config: AttentionConfig,
    layers: Sequence[int],
    seed: int = 0,
    *,
    format: str = "fp8_block",
    scale: str = "ue8m0",
    names: str = "deepseek",
    projections: str = "released",
    shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> Path:
    """Write `AttentionWeights.random` of some layers as a checkpoint directory with a `config.json`.

    `format`: "fp8_block" (e4m3 with 128 x 128 scales, `scale` "ue8m0" or "f32"), "nvfp4", "mxfp4" or "bf16";
    `projections`: those that the releases quantise, or "all" with compressors and indexer, as vendors may;
    `names`: "deepseek" or "hf". Files of at most `shard_bytes` (or one tensor) and an index, or a single
    `model.safetensors`. Holds one layer and one file in memory. Raises WeightsError for unknown choices, no
    layers and a directory that is not empty.
    """
    for what, got, known in (
        ("format", format, FORMATS), ("scale", scale, SCALES), ("names", names, NAMES),
        ("projections", projections, tuple(PROJECTIONS)),
    ):  # fmt: skip
        if got not in known:
            raise WeightsError(f"{what} {got!r} is not known; type {' or '.join(map(repr, known))}")
    if not layers:
        raise WeightsError(f"no layers to write to {path}; type some of range({len(config.compress_ratios)})")
    where = Path(path)
    if where.exists() and (not where.is_dir() or any(where.iterdir())):
        raise WeightsError(f"{where} is there already and not an empty directory; type another one")
    where.mkdir(parents=True, exist_ok=True)
    style = _Style(format, scale, names, () if format == "bf16" else PROJECTIONS[projections])
    sizes: dict[str, int] = {}
    for layer in layers:
        sizes.update(_sizes(config, layer, style))
    shards = _split(sizes, shard_bytes)
    place = {name: i for i, shard in enumerate(shards) for name in shard}
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    files = files if len(files) > 1 else [SINGLE]
    waiting: dict[str, Tensor] = {}
    for layer in layers:
        for name, tensor in _tensors(config, layer, seed, style):
            waiting[name] = tensor
            if name == shards[place[name]][-1]:
                save_file(waiting, str(where / files[place[name]]), {"format": "pt"})
                waiting = {}
    if len(files) > 1:
        weight_map = {name: files[i] for name, i in place.items()}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (where / INDEX).write_text(json.dumps(index, indent=1))
    (where / "config.json").write_text(json.dumps(hf_config(config, format, scale), indent=1))
    return where


def hf_config(config: AttentionConfig, format: str = "bf16", scale: str = "ue8m0") -> dict[str, Any]:
    """The `config.json` of a model; `AttentionConfig.from_hf` gives `config` back, less its own settings."""
    copied = (
        "hidden_size", "num_attention_heads", "head_dim", "qk_rope_head_dim", "q_lora_rank", "o_groups",
        "o_lora_rank", "sliding_window", "index_n_heads", "index_head_dim", "index_topk", "rms_norm_eps",
        "rope_theta", "compress_rope_theta", "max_position_embeddings",
    )  # fmt: skip
    found: dict[str, Any] = {"model_type": "deepseek_v4", "architectures": ["DeepseekV4ForCausalLM"]}
    found.update({name: getattr(config, name) for name in copied})
    found.update(num_key_value_heads=1, num_hidden_layers=len(config.compress_ratios))
    found["compress_ratios"] = list(config.compress_ratios)
    yarn = config.yarn
    found["rope_scaling"] = {"type": "default"} if yarn is None else {"type": "yarn", **yarn.model_dump()}
    if format == "fp8_block":
        found["quantization_config"] = {
            "quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128],
            "activation_scheme": "dynamic",
            **({"scale_fmt": "ue8m0"} if scale == "ue8m0" else {}),
        }  # fmt: skip
    if format in METHODS:
        found["quantization_config"] = METHODS[format]
    return found


@dataclass(frozen=True)
class _Style:
    """How tensors are stored and called, and which are quantised."""

    format: str
    scale: str
    names: str
    quantised: tuple[str, ...]

    def full(self, layer: int, name: str) -> str:
        return prefixes(layer)[NAMES.index(self.names)] + spelled(name, self.names, self.format)


def _sizes(config: AttentionConfig, layer: int, style: _Style) -> dict[str, int]:
    """Full names and bytes of a layer, in the order in which they are written."""
    found: dict[str, int] = {}
    for name, shape in expected_shapes(config, layer).items():
        if name not in style.quantised:
            width = 4 if name in FLOAT32_NAMES else 2
            found[style.full(layer, name)] = width * torch.Size(shape).numel()
            continue
        stored, (rows, inputs) = STORED[style.format], shape
        wide = style.format == "fp8_block" and style.scale == "f32"
        found[style.full(layer, name)] = torch.Size(stored.code_shape(rows, inputs)).numel()
        scales = torch.Size(stored.scale_shape(rows, inputs)).numel()
        found[style.full(layer, name + SCALE)] = scales * (4 if wide else 1)
        if stored.factor:
            found[style.full(layer, name + FACTOR)] = 4
    return found


def _tensors(config: AttentionConfig, layer: int, seed: int, style: _Style) -> Iterator[tuple[str, Tensor]]:
    """The tensors in the order of `_sizes`."""
    for name, tensor in AttentionWeights.random(config, layer, seed).state_dict().items():
        stored = (tensor,) if name not in style.quantised else _quantised(tensor, style)
        for suffix, values in zip(("", SCALE, FACTOR), stored, strict=False):
            yield style.full(layer, name + suffix), values


def _quantised(tensor: Tensor, style: _Style) -> tuple[Tensor, ...]:
    """Codes, scales and, where the format has one, the factor."""
    if style.format == "fp8_block":
        return block_fp8.quantise(tensor, style.scale)
    try:
        return group_fp4.quantise_nv(tensor) if style.format == "nvfp4" else group_fp4.quantise_mx(tensor)
    except ValueError as error:
        raise WeightsError(f"{style.format} cannot store a matrix {list(tensor.shape)}: {error}") from None


def _split(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Names per file, filled in order."""
    shards: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if shards[-1] and held + size > limit:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards
