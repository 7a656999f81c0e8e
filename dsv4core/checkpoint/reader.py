"""A checkpoint on disk: which tensors there are, in which files, and the weights of single layers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from os.path import isdir, isfile  # of a path that no system takes they say no, where pathlib's raise
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from dsv4core.checkpoint.shard import Shard
from dsv4core.config import AttentionConfig
from dsv4core.errors import ConfigError, WeightsError
from dsv4core.linear import QuantisedWeight
from dsv4core.parallel import Part, TensorParallel, part
from dsv4core.progress import Progress, silent
from dsv4core.runtime import usable
from dsv4core.tensor_names import STATIC, attention_layers, canonical, dotted, prefixes, split
from dsv4core.weights import AttentionWeights

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SUFFIX = ".safetensors"


class Checkpoint:
    """Names and places of all tensors; bytes are read when a layer is asked for.

    Only safetensors: pickled files are never opened. `names` maps a tensor to its file.
    """

    def __init__(self, path: Path, names: Mapping[str, Path]) -> None:
        self.path = path
        self.names = names
        self._shards: dict[Path, Shard] = {}

    @classmethod
    def open(cls, path: str | PathLike[str]) -> Checkpoint:
        """A `.safetensors` file, or a directory with one or with `model.safetensors.index.json`.

        Raises WeightsError when it is neither, or when the index is broken or points out of its directory.
        """
        where = Path(path)
        if isdir(where):
            if isfile(where / INDEX):
                return cls(where, _indexed(where))
            where = _only_file(where)
        elif not isfile(where):
            raise WeightsError(f"{where} does not exist; expected a {SUFFIX} file or a directory of them")
        elif where.suffix != SUFFIX:
            raise WeightsError(f"{where} is not a {SUFFIX} file; other formats (.bin, .pt) are never opened")
        shard = Shard(where)
        found = cls(where, dict.fromkeys(shard.names, where))
        found._shards[where] = shard
        return found

    def layers(self) -> tuple[int, ...]:
        """The layers whose attention is here, ascending."""
        return attention_layers(self.names)

    def config(self, *, profile: str = "vllm", **overrides: Any) -> AttentionConfig:
        """The model of the `config.json` beside the tensors. Raises ConfigError when there is none."""
        file = (self.path if self.path.is_dir() else self.path.parent) / "config.json"
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{file} cannot be read: {error}; give a config or a preset instead") from None
        if not isinstance(found, dict):
            raise ConfigError(f"{file} holds no JSON object, so it describes no model")
        return AttentionConfig.from_hf(cast("dict[str, Any]", found), profile=profile, **overrides)

    def attention(
        self,
        config: AttentionConfig,
        layer: int,
        *,
        prefix: str | None = None,
        device: torch.device | str = "cpu",
        progress: Progress = silent,
        parallel: TensorParallel | None = None,
    ) -> AttentionWeights:
        """The weights of a layer; see `AttentionWeights.from_checkpoint`.

        `progress` gets the bytes read so far. The device (`BackendError`), names, types and
        shapes are checked before the first of them.
        """
        where = usable(device)
        start = self._prefix(layer) if prefix is None else dotted(prefix)
        files = {name: file for name, file in self.names.items() if name.startswith(start)}
        files = {name: file for name, file in files.items() if not name.endswith(STATIC)}
        entries = {name: self._shard(file).entry(name) for name, file in files.items()}
        try:
            metas = {name: entry.meta() for name, entry in entries.items()}
            whole = AttentionWeights.from_state_dict(metas, start)
            whole.validate(config, layer)
            pieces = _pieces(whole, files, start, config, parallel)
        except WeightsError as error:
            there = sorted({str(file) for file in files.values()}) or [str(self.path)]
            raise WeightsError(f"{', '.join(there)}: {error}") from None
        total = sum(entry.read_size(pieces.get(name)) for name, entry in entries.items())
        what, done = f"layer {layer} weights", 0

        def report(size: int) -> None:
            nonlocal done
            done += size
            progress(what, done, total)

        tensors: dict[str, Tensor] = {}
        for name, file in files.items():
            tensors[name] = self._shard(file).read(name, report, pieces.get(name)).to(where)
        return AttentionWeights.from_state_dict(tensors, start)

    def _prefix(self, layer: int) -> str:
        for prefix in prefixes(layer):
            if any(name.startswith(prefix) for name in self.names):
                return prefix
        there = ", ".join(map(str, self.layers())) or "no layer"
        raise WeightsError(
            f"{self.path} has no attention of layer {layer} (names like {prefixes(layer)[0]}wq_a.weight);"
            f" it has {there}"
        )

    def _shard(self, file: Path) -> Shard:
        if file not in self._shards:
            if not isfile(file):
                raise WeightsError(f"{file} is missing; the index of {self.path} expects tensors in it")
            self._shards[file] = Shard(file)
        return self._shards[file]


def _pieces(
    whole: AttentionWeights,
    names: Iterable[str],
    start: str,
    config: AttentionConfig,
    parallel: TensorParallel | None,
) -> dict[str, Part]:
    """What a rank reads of the tensors that it does not need all of, by full name."""
    if parallel is None:
        return {}
    parallel.local(config)  # refuses what cannot be shared out
    found, weights = dict[str, Part](), whole.flat()
    for full in names:
        name, suffix = split(canonical(full.removeprefix(start)))
        weight = weights[name]
        stored = weight.format if isinstance(weight, QuantisedWeight) else None
        piece = part(name, suffix, tuple(weight.shape), stored, parallel)
        if piece is not None:
            found[full] = piece
    return found


def _indexed(directory: Path) -> dict[str, Path]:
    """Tensor -> file of an index; every entry must name a safetensors file of the directory itself."""
    file = directory / INDEX
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{file} cannot be read: {error}") from None
    table = cast("dict[str, Any]", found).get("weight_map") if isinstance(found, dict) else None
    if not isinstance(table, dict) or not table:
        raise WeightsError(f'{file} has no "weight_map", expected an object from tensor names to files')
    names: dict[str, Path] = {}
    for name, shard in cast("dict[str, Any]", table).items():
        if not isinstance(shard, str) or not _is_plain(shard):
            raise WeightsError(
                f"{file} places {name!r} in {shard!r}; expected the name of a {SUFFIX} file in the same"
                " directory"
            )
        names[name] = directory / shard
    return names


def _is_plain(name: str) -> bool:
    """A file name without any path, on any system."""
    return name.endswith(SUFFIX) and not name.startswith(".") and not set(name) & set("/\\:\0")


def _only_file(directory: Path) -> Path:
    """The file of a directory without an index."""
    if (directory / SINGLE).is_file():
        return directory / SINGLE
    found: Sequence[Path] = sorted(directory.glob(f"*{SUFFIX}"))
    if len(found) == 1:
        return found[0]
    have = f"{len(found)} {SUFFIX} files" if found else f"no {SUFFIX} file (pickled ones are never opened)"
    raise WeightsError(f"{directory} has no {INDEX} and {have}; expected the index, or exactly one file")
