"""The tensors of one attention layer, under their names in DeepSeek's checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from dsv4core.config import AttentionConfig, state_width
from dsv4core.errors import WeightsError
from dsv4core.synthetic import hash_normal

MAIN_NAMES = ("wq_a", "q_norm", "wq_b", "wkv", "kv_norm", "wo_a", "wo_b", "attn_sink")
COMPRESSOR_PARTS = ("wkv", "wgate", "ape", "norm")
COMPRESSOR_NAMES = tuple(f"compressor.{part}" for part in COMPRESSOR_PARTS)
INDEXER_NAMES = ("indexer.wq_b", "indexer.weights_proj", *(f"indexer.{name}" for name in COMPRESSOR_NAMES))
FLOATS = (torch.bfloat16, torch.float32)
FLOAT32_NAMES = ("attn_sink", "compressor.ape", "indexer.compressor.ape")
NORM_NAMES = ("q_norm", "kv_norm", "compressor.norm", "indexer.compressor.norm")

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

    wkv: Tensor
    wgate: Tensor
    ape: Tensor
    norm: Tensor


@dataclass(frozen=True, eq=False)
class IndexerWeights:
    """The indexer of a ratio-4 layer. Shapes: wq_b [Hi * 128, q_lora], weights_proj [Hi, hidden]."""

    wq_b: Tensor
    weights_proj: Tensor
    compressor: CompressorWeights


@dataclass(frozen=True, eq=False)
class AttentionWeights:
    """All tensors of one layer; attribute paths are the checkpoint's names.

    Shapes: `expected_shapes` lists them. Layers with ratio 0 have no compressor, only ratio 4 has an indexer.
    """

    wq_a: Tensor
    q_norm: Tensor
    wq_b: Tensor
    wkv: Tensor
    kv_norm: Tensor
    wo_a: Tensor
    wo_b: Tensor
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

        A dot between prefix and name is added where it is missing; names outside the prefix are ignored;
        types are kept (bf16 and f32). Raises WeightsError naming all that is missing, unknown or of another
        type.
        """
        return _assemble(_named(tensors, prefix))

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors by bare checkpoint name, without `.weight`."""
        return _flatten(self)

    def validate(self, config: AttentionConfig, layer: int) -> None:
        """Raise WeightsError unless names and shapes are those of the layer; lists every difference."""
        have, want = self.state_dict(), expected_shapes(config, layer)
        problems = [f"{name} is missing" for name in want if name not in have]
        problems += [f"{name} is not part of such a layer" for name in have if name not in want]
        for name, shape in want.items():
            if name in have and tuple(have[name].shape) != shape:
                problems.append(f"{name} is {list(have[name].shape)}, expected {list(shape)}")
        if problems:
            what = f"layer {layer} ({config.layer(layer).kind}, ratio {config.layer(layer).ratio})"
            raise WeightsError(f"weights of {what}: {'; '.join(problems)}")

    def prepared(self, dtype: torch.dtype = torch.bfloat16) -> AttentionWeights:
        """A copy for running: projections in `dtype`, ape and attn_sink in f32, norms as they are."""

        def cast(name: str, tensor: Tensor) -> Tensor:
            if name in NORM_NAMES:
                return tensor
            return tensor.to(torch.float32 if name in FLOAT32_NAMES else dtype)

        return self._mapped(cast)

    def to(self, device: torch.device | str) -> AttentionWeights:
        """A copy on a device."""
        return self._mapped(lambda _, tensor: tensor.to(device))

    def _mapped(self, change: Callable[[str, Tensor], Tensor]) -> AttentionWeights:
        return _assemble({name: change(name, tensor) for name, tensor in self.state_dict().items()})


def expected_shapes(config: AttentionConfig, layer: int) -> dict[str, tuple[int, ...]]:
    """Checkpoint names and shapes of a layer."""
    c, ratio = config, config.layer(layer).ratio
    heads = c.num_attention_heads * c.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "wq_a": (c.q_lora_rank, c.hidden_size),
        "q_norm": (c.q_lora_rank,),
        "wq_b": (heads, c.q_lora_rank),
        "wkv": (c.head_dim, c.hidden_size),
        "kv_norm": (c.head_dim,),
        "wo_a": (c.o_groups * c.o_lora_rank, heads // c.o_groups),
        "wo_b": (c.hidden_size, c.o_groups * c.o_lora_rank),
        "attn_sink": (c.num_attention_heads,),
    }
    if ratio:
        shapes.update(_compressor_shapes("compressor.", c.hidden_size, ratio, c.head_dim))
    if ratio == 4:
        shapes["indexer.wq_b"] = (c.index_n_heads * c.index_head_dim, c.q_lora_rank)
        shapes["indexer.weights_proj"] = (c.index_n_heads, c.hidden_size)
        shapes.update(_compressor_shapes("indexer.compressor.", c.hidden_size, ratio, c.index_head_dim))
    return shapes


def _compressor_shapes(prefix: str, hidden: int, ratio: int, width: int) -> dict[str, tuple[int, ...]]:
    both = state_width(ratio, width)
    shapes = {"wkv": (both, hidden), "wgate": (both, hidden), "ape": (ratio, both), "norm": (width,)}
    return {prefix + name: shape for name, shape in shapes.items()}


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
) -> dict[str, Tensor]:
    flat: dict[str, Tensor] = {}
    for field in fields(weights):
        value: Tensor | CompressorWeights | IndexerWeights | None = getattr(weights, field.name)
        if isinstance(value, Tensor):
            flat[prefix + field.name] = value
        elif value is not None:
            flat.update(_flatten(value, f"{prefix}{field.name}."))
    return flat


def _assemble(tensors: Mapping[str, Tensor]) -> AttentionWeights:
    """The nested dataclasses of bare names; a part is there when one of its names is."""
    with_compressor = any(name.startswith("compressor.") for name in tensors)
    with_indexer = any(name.startswith("indexer.") for name in tensors)
    wanted = MAIN_NAMES + COMPRESSOR_NAMES * with_compressor + INDEXER_NAMES * with_indexer
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise WeightsError(f"the tensors of a layer lack {', '.join(missing)}; found {', '.join(tensors)}")
    indexer = None
    if with_indexer:
        indexer = IndexerWeights(
            wq_b=tensors["indexer.wq_b"],
            weights_proj=tensors["indexer.weights_proj"],
            compressor=_compressor(tensors, "indexer.compressor."),
        )
    return AttentionWeights(
        **{name: tensors[name] for name in MAIN_NAMES},
        compressor=_compressor(tensors, "compressor.") if with_compressor else None,
        indexer=indexer,
    )


def _compressor(tensors: Mapping[str, Tensor], prefix: str) -> CompressorWeights:
    return CompressorWeights(**{name: tensors[prefix + name] for name in COMPRESSOR_PARTS})


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors behind the prefix by bare name; raises for names and types that are not understood."""
    start = prefix if not prefix or prefix.endswith(".") else prefix + "."
    found: dict[str, Tensor] = {}
    problems: list[str] = []
    for full, tensor in tensors.items():
        if not full.startswith(start):
            continue
        name = full.removeprefix(start).removesuffix(".weight")
        if name not in (*MAIN_NAMES, *COMPRESSOR_NAMES, *INDEXER_NAMES):
            problems.append(f"{full} is not a tensor of an attention layer")
        elif name in found:
            problems.append(f"{full} is there twice, with and without .weight")
        elif tensor.dtype not in FLOATS:
            kind = str(tensor.dtype).removeprefix("torch.")
            problems.append(f"{full} is {kind}; only bfloat16 and float32 are read, so dequantise it first")
        found[name] = tensor
    if not found:
        near = sorted({full.split("wq_a")[0] for full in tensors if "wq_a" in full})
        there = f"prefixes with a wq_a are {', '.join(map(repr, near[:4]))}" if near else "no name holds wq_a"
        raise WeightsError(f"no tensor name begins with {start!r}; {there}")
    if problems:
        raise WeightsError(f"tensors behind {start!r}: {'; '.join(problems)}")
    return found
