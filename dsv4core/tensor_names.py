"""Names and shapes of a layer's tensors: DeepSeek's names, those of transformers, and how they map."""

from __future__ import annotations

from collections.abc import Iterable

from dsv4core.config import AttentionConfig, state_width

MAIN_NAMES = ("wq_a", "q_norm", "wq_b", "wkv", "kv_norm", "wo_a", "wo_b", "attn_sink")
COMPRESSOR_PARTS = ("wkv", "wgate", "ape", "norm")
COMPRESSOR_NAMES = tuple(f"compressor.{part}" for part in COMPRESSOR_PARTS)
INDEXER_NAMES = ("indexer.wq_b", "indexer.weights_proj", *(f"indexer.{name}" for name in COMPRESSOR_NAMES))
ALL_NAMES = (*MAIN_NAMES, *COMPRESSOR_NAMES, *INDEXER_NAMES)
# The linear layers that DeepSeek's releases store as fp8 blocks; others quantise more of the projections.
RELEASED = ("wq_a", "wq_b", "wkv", "wo_a", "wo_b", "indexer.wq_b")
QUANTISABLE = (
    *RELEASED, "compressor.wkv", "compressor.wgate", "indexer.weights_proj", "indexer.compressor.wkv",
    "indexer.compressor.wgate",
)  # fmt: skip
FLOAT32_NAMES = ("attn_sink", "compressor.ape", "indexer.compressor.ape")
NORM_NAMES = ("q_norm", "kv_norm", "compressor.norm", "indexer.compressor.norm")

# Hugging Face's modules (transformers' `deepseek_v4`) -> DeepSeek's; the same tensors in the same layout.
HF_NAMES = {
    "q_a_proj": "wq_a",
    "q_a_norm": "q_norm",
    "q_b_proj": "wq_b",
    "kv_proj": "wkv",
    "kv_norm": "kv_norm",
    "o_a_proj": "wo_a",
    "o_b_proj": "wo_b",
    "sinks": "attn_sink",
    "compressor.kv_proj": "compressor.wkv",
    "compressor.gate_proj": "compressor.wgate",
    "compressor.position_bias": "compressor.ape",
    "compressor.kv_norm": "compressor.norm",
    "compressor.indexer.kv_proj": "indexer.compressor.wkv",
    "compressor.indexer.gate_proj": "indexer.compressor.wgate",
    "compressor.indexer.position_bias": "indexer.compressor.ape",
    "compressor.indexer.kv_norm": "indexer.compressor.norm",
    "compressor.indexer.q_b_proj": "indexer.wq_b",
    "compressor.indexer.scorer.weights_proj": "indexer.weights_proj",
}
DEEPSEEK_NAMES = {ours: theirs for theirs, ours in HF_NAMES.items()}
BARE = ("attn_sink", "compressor.ape", "indexer.compressor.ape")  # parameters, without a trailing `.weight`
SCALE = ".scale"  # one per block or group
FACTOR = ".scale_2"  # one for a whole NVFP4 matrix
# All of them are factors, whatever `_inv` suggests; the longer names are transformers' and ModelOpt's.
SPELLINGS = {
    SCALE: SCALE, ".weight_scale_inv": SCALE, ".weight_scale": SCALE,
    FACTOR: FACTOR, ".weight_scale_2": FACTOR,
}  # fmt: skip
STATIC = ".input_scale"  # of activations, in NVFP4 checkpoints; nothing here reads it
DIGITS = 9  # of a layer's index: Python refuses to read thousands of them
LAYER_PREFIXES = (
    "layers.{}.attn.",
    "model.layers.{}.self_attn.",
    "model.layers.{}.attn.",
    "layers.{}.self_attn.",
)


def canonical(name: str) -> str:
    """DeepSeek's bare name of a tensor behind the layer's prefix; scales end in `.scale` and `.scale_2`.

    A name that neither side uses comes back as it is.
    """
    suffix = next((s for s in SPELLINGS if name.endswith(s)), "")
    stem = name.removesuffix(suffix).removesuffix(".weight")
    return HF_NAMES.get(stem, stem) + SPELLINGS.get(suffix, "")


def split(name: str) -> tuple[str, str]:
    """A canonical name as that of the matrix and the suffix of its part: "", `SCALE` or `FACTOR`."""
    suffix = next((s for s in (SCALE, FACTOR) if name.endswith(s)), "")
    return name.removesuffix(suffix), suffix


def spelled(name: str, style: str, format: str = "fp8_block") -> str:
    """The full name behind the prefix, in `style` "deepseek" or "hf", of a canonical name.

    Scales of `format` "nvfp4" have ModelOpt's names in both styles.
    """
    stem, suffix = split(name)
    there = stem if style == "deepseek" else DEEPSEEK_NAMES[stem]
    if suffix:
        modelopt = {SCALE: ".weight_scale", FACTOR: ".weight_scale_2"}
        blocks = {SCALE: SCALE if style == "deepseek" else ".weight_scale_inv"}
        return there + (modelopt if format == "nvfp4" else blocks)[suffix]
    return there if stem in BARE else f"{there}.weight"


def dotted(prefix: str) -> str:
    """A prefix as names begin with it: a dot between it and the name is added where it is missing."""
    return prefix if not prefix or prefix.endswith(".") else prefix + "."


def prefixes(layer: int) -> tuple[str, ...]:
    """Where the attention of a layer may begin."""
    return tuple(prefix.format(layer) for prefix in LAYER_PREFIXES)


def attention_layers(names: Iterable[str]) -> tuple[int, ...]:
    """Indices of the layers whose attention is named, ascending."""
    found: set[int] = set()
    for name in names:
        head, _, rest = name.removeprefix("model.").removeprefix("layers.").partition(".")
        if head.isdecimal() and len(head) <= DIGITS and name.startswith(prefixes(int(head))) and rest:
            found.add(int(head))
    return tuple(sorted(found))


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
