"""The tensors of one attention layer, under their names in DeepSeek's checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from os import PathLike

import torch
from torch import Tensor

from dsv4core.config import AttentionConfig
from dsv4core.errors import WeightsError
from dsv4core.linear import QuantisedWeight, Weight, dense
from dsv4core.parallel import TensorParallel, shard
from dsv4core.progress import Progress, silent
from dsv4core.runtime import usable
from dsv4core.state_dict import named_weights, type_problem
from dsv4core.synthetic import hash_normal
from dsv4core.tensor_names import (
    COMPRESSOR_NAMES,
    FACTOR,
    FLOAT32_NAMES,
    INDEXER_NAMES,
    MAIN_NAMES,
    NORM_NAMES,
    QUANTISABLE,
    SCALE,
    expected_shapes,
)

# Measured on the released V4-Flash: name -> (standard deviation, fan-in there).
MEASURED = {
    "compressor.wkv": (0.0245, 4096),
    "compressor.wgate": (0.0388, 4096),
    "indexer.compressor.wkv": (0.0293, 4096),
    "indexer.compressor.wgate": (0.0512, 4096),
    "indexer.weights_proj": (0.2313, 4096),
    "indexer.wq_b": (0.108, 1024),
}
# Not projections: name -> (mean, std), measured where the checkpoint has them in the same place.
OFFSETS = {
    "attn_sink": (0.0, 1.0),
    "q_norm": (1.0, 0.1),
    "kv_norm": (1.0, 0.1),
    "compressor.norm": (0.967, 0.193),
    "compressor.ape": (0.0, 0.1243),
    "indexer.compressor.norm": (0.685, 0.261),
    "indexer.compressor.ape": (0.0, 0.1528),
}


@dataclass(frozen=True, eq=False)
class CompressorWeights:
    """A compressor: two projections, the position bias of the scores, the norm of an entry.

    Shapes: wkv, wgate [coff * d, hidden], ape f32 [ratio, coff * d], norm [d].
    """

    wkv: Weight
    wgate: Weight
    ape: Tensor
    norm: Tensor


@dataclass(frozen=True, eq=False)
class IndexerWeights:
    """The indexer of a ratio-4 layer. Shapes: wq_b [Hi * 128, q_lora], weights_proj [Hi, hidden]."""

    wq_b: Weight
    weights_proj: Weight
    compressor: CompressorWeights


@dataclass(frozen=True, eq=False)
class AttentionWeights:
    """All tensors of one layer; attribute paths are the checkpoint's names.

    A projection is a tensor, or a `QuantisedWeight` as the checkpoint stores it. Shapes: `expected_shapes`
    lists them. Layers with ratio 0 have no compressor, only ratio 4 has an indexer.
    """

    wq_a: Weight
    q_norm: Tensor
    wq_b: Weight
    wkv: Weight
    kv_norm: Tensor
    wo_a: Weight
    wo_b: Weight
    attn_sink: Tensor
    compressor: CompressorWeights | None = None
    indexer: IndexerWeights | None = None

    @classmethod
    def random(cls, config: AttentionConfig, layer: int, seed: int = 0) -> AttentionWeights:
        """Reproducible weights with the statistics of the released V4-Flash, in the checkpoint's types.

        Every value is a small integer times a power of two, exact in bf16. Layers differ by their index.
        """
        shapes = expected_shapes(config, layer)
        return _assemble({name: _random(name, shape, layer, seed) for name, shape in shapes.items()})

    @classmethod
    def from_state_dict(cls, tensors: Mapping[str, Tensor], prefix: str = "") -> AttentionWeights:
        """From checkpoint tensors named `prefix` + name, with or without a trailing `.weight`.

        Names are DeepSeek's or transformers'. A dot between prefix and name is added where it is missing;
        names outside the prefix are ignored; types are kept: bf16, f32, and the quantised formats with their
        scales (docs/checkpoints.md has the names). Raises WeightsError naming all that is missing, unknown or
        of another type.
        """
        return _assemble(named_weights(tensors, prefix))

    @classmethod
    def from_checkpoint(
        cls,
        path: str | PathLike[str],
        config: AttentionConfig,
        layer: int,
        *,
        prefix: str | None = None,
        device: torch.device | str = "cpu",
        progress: Progress = silent,
        parallel: TensorParallel | None = None,
    ) -> AttentionWeights:
        """One layer of a safetensors file or of a sharded directory; reads the bytes of that layer only.

        `prefix` is found for `layer` unless it is given ("mtp.0.attn." is a draft layer). With `parallel`
        only this rank's share is read; `config` is the whole model's. Raises WeightsError naming the file,
        what was expected and what is there, before anything is read where that can be seen.
        """
        from dsv4core.checkpoint import Checkpoint

        return Checkpoint.open(path).attention(
            config, layer, prefix=prefix, device=device, progress=progress, parallel=parallel
        )

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors by bare checkpoint name, without `.weight`; scales end in `.scale` and `.scale_2`."""
        flat: dict[str, Tensor] = {}
        for name, value in self.flat().items():
            flat[name] = value if isinstance(value, Tensor) else value.weight
            if isinstance(value, QuantisedWeight):
                flat[name + SCALE] = value.scales
                if value.global_scale is not None:
                    flat[name + FACTOR] = value.global_scale
        return flat

    def dequantised(self, dtype: torch.dtype = torch.float32) -> AttentionWeights:
        """A copy without quantised projections: those that are become `dtype`, the rest stays as it is."""
        return self._mapped(lambda _, value: value if isinstance(value, Tensor) else value.dequantised(dtype))

    def validate(self, config: AttentionConfig, layer: int) -> None:
        """Raise WeightsError unless names, shapes and types are those of a layer; lists every difference."""
        have, want = self.flat(), expected_shapes(config, layer)
        problems = [f"{name} is missing" for name in want if name not in have]
        problems += [f"{name} is not part of such a layer" for name in have if name not in want]
        for name, shape in want.items():
            if name in have and tuple(have[name].shape) != shape:
                problems.append(f"{name} is {list(have[name].shape)}, expected {list(shape)}")
        for name, value in have.items():
            if isinstance(value, Tensor) and (problem := type_problem(name, value)):
                problems.append(f"{name}{problem}")
        if problems:
            what = f"layer {layer} ({config.layer(layer).kind}, ratio {config.layer(layer).ratio})"
            raise WeightsError(f"weights of {what}: {'; '.join(problems)}")

    def check_values(self) -> None:
        """Raise WeightsError naming every quantised projection with values that are no numbers."""
        problems: list[str] = []
        for name, value in self.flat().items():
            try:
                if isinstance(value, QuantisedWeight):
                    value.check_values()
            except WeightsError as error:
                problems.append(f"{name}: {error}")
        if problems:
            raise WeightsError("; ".join(problems))

    def prepared(self, dtype: torch.dtype = torch.bfloat16, *, widen: bool = False) -> AttentionWeights:
        """A copy for running: projections in `dtype`, ape and attn_sink in f32, norms as they are.

        All of them are contiguous, as ops take them; what is so already is not copied for that.
        Quantised projections stay quantised (`linear` dequantises on the fly) unless `widen` is set.
        """

        def cast(name: str, value: Weight) -> Weight:
            if isinstance(value, QuantisedWeight) and not widen:
                return QuantisedWeight(_packed(value.weight), _packed(value.scales), value.global_scale)
            if name in NORM_NAMES and isinstance(value, Tensor):
                return _packed(value)
            return _packed(dense(value, torch.float32 if name in FLOAT32_NAMES else dtype))

        return self._mapped(cast)

    def sharded(self, parallel: TensorParallel) -> AttentionWeights:
        """This rank's share: its heads of wq_b, wo_a, wo_b and attn_sink, all of the rest."""
        return self._mapped(lambda name, value: shard(name, value, parallel))

    def flat(self) -> dict[str, Weight]:
        """The tensors by canonical name; a quantised projection is one of them."""
        return _flatten(self)

    def to(self, device: torch.device | str) -> AttentionWeights:
        """A copy on a device. Raises BackendError where torch has none."""
        where = usable(device)
        return self._mapped(lambda _, value: value.to(where))

    def _mapped(self, change: Callable[[str, Weight], Weight]) -> AttentionWeights:
        return _assemble({name: change(name, value) for name, value in self.flat().items()})


def _packed(tensor: Tensor) -> Tensor:
    """The tensor without strides; one-byte floats travel as bytes, which every device can copy."""
    if tensor.is_contiguous() or tensor.dtype.itemsize > 1:
        return tensor.contiguous()
    return tensor.view(torch.uint8).contiguous().view(tensor.dtype)


def _random(name: str, shape: tuple[int, ...], layer: int, seed: int) -> Tensor:
    stream = f"layer {layer} {name}"
    dtype = torch.float32 if name in FLOAT32_NAMES else torch.bfloat16
    if name in OFFSETS:
        mean, std = OFFSETS[name]
        # Around a mean, bf16 has 8 bits for mean and deviation together: a grid of 1/128 up to 2.
        step = None if mean == 0.0 else 2.0**-7
        return hash_normal(shape, seed, stream, std, step, mean=mean, dtype=dtype)
    measured, fan_in = MEASURED.get(name, (1.0, 1))
    return hash_normal(shape, seed, stream, measured * (fan_in / shape[-1]) ** 0.5, dtype=dtype)


def _flatten(
    weights: AttentionWeights | IndexerWeights | CompressorWeights, prefix: str = ""
) -> dict[str, Weight]:
    flat: dict[str, Weight] = {}
    for field in fields(weights):
        value: Weight | CompressorWeights | IndexerWeights | None = getattr(weights, field.name)
        if isinstance(value, (Tensor, QuantisedWeight)):
            flat[prefix + field.name] = value
        elif value is not None:
            flat.update(_flatten(value, f"{prefix}{field.name}."))
    return flat


def _assemble(values: Mapping[str, Weight]) -> AttentionWeights:
    """The nested dataclasses of bare names; a part is there when one of its names is."""
    with_compressor = any(name.startswith("compressor.") for name in values)
    with_indexer = any(name.startswith("indexer.") for name in values)
    wanted = MAIN_NAMES + COMPRESSOR_NAMES * with_compressor + INDEXER_NAMES * with_indexer
    missing = [name for name in wanted if name not in values]
    if missing:
        raise WeightsError(f"the tensors of a layer lack {', '.join(missing)}; found {', '.join(values)}")
    wrong = [n for n, v in values.items() if isinstance(v, QuantisedWeight) and n not in QUANTISABLE]
    if wrong:
        raise WeightsError(f"{', '.join(wrong)}: only {', '.join(QUANTISABLE)} may be quantised")
    plain = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    indexer = None
    if with_indexer:
        indexer = IndexerWeights(
            wq_b=values["indexer.wq_b"],
            weights_proj=values["indexer.weights_proj"],
            compressor=_compressor(values, plain, "indexer.compressor."),
        )
    return AttentionWeights(
        wq_a=values["wq_a"],
        q_norm=plain["q_norm"],
        wq_b=values["wq_b"],
        wkv=values["wkv"],
        kv_norm=plain["kv_norm"],
        wo_a=values["wo_a"],
        wo_b=values["wo_b"],
        attn_sink=plain["attn_sink"],
        compressor=_compressor(values, plain, "compressor.") if with_compressor else None,
        indexer=indexer,
    )


def _compressor(values: Mapping[str, Weight], plain: Mapping[str, Tensor], prefix: str) -> CompressorWeights:
    return CompressorWeights(
        values[prefix + "wkv"], values[prefix + "wgate"], plain[prefix + "ape"], plain[prefix + "norm"]
    )
