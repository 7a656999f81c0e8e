"""What a model is: the numbers of its attention layers and the profile of their caches. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from dsv4core._frozen import FrozenModel
from dsv4core._hf import hf_values
from dsv4core.errors import ConfigError, DSV4CoreError

Kind = Literal["swa", "csa", "hca"]
Profile = Literal["vllm", "official", "sglang", "math"]
IndexFormat = Literal["fp8", "fp8_f32", "mxfp4", "f32"]
Rotation = Literal["none", "hadamard"]

KINDS: dict[int, Kind] = {0: "swa", 4: "csa", 128: "hca"}


class IndexLayout(NamedTuple):
    """What an index layout id means for the indexer's q."""

    format: IndexFormat
    rotate: Rotation


# Ids only: the objects are in dsv4core.layout, which needs torch.
MAIN_LAYOUTS = ("fp8_ds_mla", "fp8_ds_mla_fnuz", "bf16_row", "fp8_row", "f32_row")
INDEX_LAYOUTS: dict[str, IndexLayout] = {
    "index_fp8": IndexLayout("fp8", "none"),
    "index_fp8_ue8m0x4": IndexLayout("fp8", "none"),
    "index_fp8_hadamard_f32": IndexLayout("fp8_f32", "hadamard"),
    "index_mxfp4": IndexLayout("mxfp4", "none"),
    "index_mxfp4_hadamard": IndexLayout("mxfp4", "hadamard"),
    "index_f32": IndexLayout("f32", "none"),
}
PROFILE_LAYOUTS: dict[str, tuple[str, str]] = {
    "vllm": ("fp8_ds_mla", "index_fp8"),
    "official": ("fp8_ds_mla", "index_mxfp4_hadamard"),
    "sglang": ("fp8_ds_mla", "index_fp8_hadamard_f32"),
    "math": ("f32_row", "index_f32"),
}


def state_width(ratio: int, head_dim: int) -> int:
    """f32 values of kv (and again of score) per token: twice head_dim where windows overlap (ratio 4)."""
    return (2 if ratio == 4 else 1) * head_dim


class YarnConfig(FrozenModel):
    """YaRN of the compressed layers. DeepSeek-V4 uses no magnitude factor, so there is none here."""

    error: ClassVar[type[DSV4CoreError]] = ConfigError
    noun: ClassVar[str] = "yarn"

    factor: float = Field(default=16.0, ge=1.0)
    original_max_position_embeddings: PositiveInt = 65536
    beta_fast: PositiveFloat = 32.0
    beta_slow: PositiveFloat = 1.0


@dataclass(frozen=True)
class LayerConfig:
    """What one layer is: its ratio, its kind, and the one RoPE table that it uses everywhere."""

    index: int
    ratio: int
    kind: Kind
    coff: int
    rope: Literal["main", "compress"]
    theta: float
    yarn: YarnConfig | None


class AttentionConfig(FrozenModel):
    """The attention of one DeepSeek-V4 model, with Hugging Face's names.

    `compress_ratios` has one entry per layer: 0 window only, 4 overlapping windows plus indexer (CSA), 128
    dense over entries (HCA). The `profile` selects layouts, rotation and output quantisation, nothing else.
    Raises ConfigError naming every field that does not fit.
    """

    error: ClassVar[type[DSV4CoreError]] = ConfigError
    noun: ClassVar[str] = "attention config"

    hidden_size: PositiveInt
    num_attention_heads: PositiveInt
    head_dim: PositiveInt = 512
    qk_rope_head_dim: PositiveInt = 64
    q_lora_rank: PositiveInt
    o_groups: PositiveInt
    o_lora_rank: PositiveInt
    sliding_window: PositiveInt = 128
    index_n_heads: PositiveInt
    index_head_dim: PositiveInt = 128
    index_topk: PositiveInt
    rms_norm_eps: PositiveFloat = 1e-6
    compress_ratios: tuple[int, ...] = Field(min_length=1)
    rope_theta: PositiveFloat = 10000.0
    compress_rope_theta: PositiveFloat = 160000.0
    yarn: YarnConfig | None = YarnConfig()
    max_position_embeddings: PositiveInt = 1048576
    profile: Profile = "vllm"
    main_layout: str = ""
    index_layout: str = ""
    output_quant: Literal["f32", "ue8m0x4"] | None = None
    # fp8 activations (1 x 128, UE8M0 scales) in front of fp8 projections, as DeepSeek's inference code has.
    activation_quant: Literal["ue8m0"] | None = None
    # "checkpoint" keeps quantised projections as stored, "widened" makes them dense when a layer is built.
    weight_storage: Literal["checkpoint", "widened"] = "checkpoint"
    prefill_chunk_requests: PositiveInt = 4
    decode_threshold: PositiveInt = 1

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, data: Any) -> Any:
        """Ratio 1 means 0 here, and a profile names its layouts unless they are given."""
        values: dict[str, Any] = dict(data)
        flags = [f"{name} is {value}" for name, value in values.items() if isinstance(value, bool)]
        if flags:  # pydantic takes True for 1, and no field here is a truth value
            raise ValueError(f"{', '.join(flags)}; no field takes a truth value")
        ratios = values.get("compress_ratios")
        if isinstance(ratios, (list, tuple)):
            values["compress_ratios"] = tuple(0 if r == 1 else r for r in ratios)  # pyright: ignore
        profile = values.get("profile", "vllm")
        layouts = PROFILE_LAYOUTS.get(profile) if isinstance(profile, str) else None
        for name, derived in zip(("main_layout", "index_layout"), layouts or ("", ""), strict=True):
            if values.get(name) in (None, ""):
                values[name] = derived
        return values

    @model_validator(mode="after")
    def _check(self) -> AttentionConfig:
        problems = [*_dimension_problems(self), *_layout_problems(self)]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @classmethod
    def preset(cls, name: str, *, profile: str = "vllm", **overrides: Any) -> AttentionConfig:
        """A released model ("v4-flash", "v4-pro") or "tiny", with single values replaced by `overrides`."""
        if not isinstance(name, str) or name not in PRESETS:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"preset {name!r} does not exist; the presets are {', '.join(PRESETS)}")
        values: dict[str, Any] = {**PRESETS[name], "profile": _known_profile(profile), **overrides}
        return cls(**values)

    @classmethod
    def from_hf(
        cls, config: Mapping[str, Any], *, profile: str = "vllm", **overrides: Any
    ) -> AttentionConfig:
        """From the dict of a Hugging Face `config.json` or of transformers' `DeepseekV4Config.to_dict()`.

        Refuses a dict without a layer schedule or without the YaRN values of its compressed layers:
        transformers fills both with defaults that match no released checkpoint.
        """
        values: dict[str, Any] = {**hf_values(config), "profile": _known_profile(profile), **overrides}
        return cls(**values)

    def layer(self, index: int) -> LayerConfig:
        """What layer `index` is. Raises ConfigError for an index that the model does not have."""
        count = len(self.compress_ratios)
        numbered = isinstance(index, int)  # pyright: ignore[reportUnnecessaryIsInstance]
        if not numbered or not 0 <= index < count:
            raise ConfigError(f"layer {index!r} was asked for; this model has layers 0 to {count - 1}")
        ratio = self.compress_ratios[index]
        coff = 2 if ratio == 4 else 1
        if ratio == 0:
            return LayerConfig(index, ratio, KINDS[ratio], coff, "main", self.rope_theta, None)
        return LayerConfig(index, ratio, KINDS[ratio], coff, "compress", self.compress_rope_theta, self.yarn)

    @property
    def softmax_scale(self) -> float:
        """head_dim^-0.5; YaRN does not change it."""
        return self.head_dim**-0.5

    @property
    def index_softmax_scale(self) -> float:
        """index_head_dim^-0.5, folded into the indexer's weights."""
        return self.index_head_dim**-0.5

    @property
    def index_head_scale(self) -> float:
        """index_n_heads^-0.5, folded into the indexer's weights."""
        return self.index_n_heads**-0.5

    @property
    def activation(self) -> Literal["bf16", "f32"]:
        """Type of the activations: f32 in profile `math`, else bf16."""
        return "f32" if self.profile == "math" else "bf16"

    @property
    def index_format(self) -> IndexFormat:
        """How the indexer's q is encoded; it follows the index layout."""
        return INDEX_LAYOUTS[self.index_layout].format

    @property
    def rotate(self) -> Rotation:
        """Whether the indexer's q and k are Hadamard-rotated; it follows the index layout."""
        return INDEX_LAYOUTS[self.index_layout].rotate

    @staticmethod
    def state_width(ratio: int, head_dim: int) -> int:
        """See `dsv4core.config.state_width`."""
        return state_width(ratio, head_dim)


def _known_profile(profile: str) -> str:
    if isinstance(profile, str) and profile in PROFILE_LAYOUTS:  # pyright: ignore
        return profile
    known = ", ".join(PROFILE_LAYOUTS)
    raise ConfigError(f"profile {profile!r} does not exist; the profiles are {known}")


def _dimension_problems(c: AttentionConfig) -> list[str]:
    """Sizes that the pages and the rotation are built on, and sizes that must divide."""
    fixed = (("head_dim", c.head_dim, 512), ("qk_rope_head_dim", c.qk_rope_head_dim, 64))
    fixed = (*fixed, ("index_head_dim", c.index_head_dim, 128))
    problems = [f"{name} is {got}, but cache rows are made for {n}" for name, got, n in fixed if got != n]
    sizes = {name: getattr(c, name) for name in type(c).model_fields if isinstance(getattr(c, name), int)}
    problems += [f"{name} is {got}, no size passes 2^31 - 1" for name, got in sizes.items() if got >= 2**31]
    thetas = (("rope_theta", c.rope_theta), ("compress_rope_theta", c.compress_rope_theta))
    problems += [f"{name} is {got}; a rotation base is above 1" for name, got in thetas if got <= 1]
    if c.yarn is not None and c.yarn.beta_fast <= c.yarn.beta_slow:
        problems.append(f"yarn: beta_fast {c.yarn.beta_fast} is not above beta_slow {c.yarn.beta_slow}")
    if c.num_attention_heads % c.o_groups:
        heads = c.num_attention_heads
        problems.append(f"num_attention_heads {heads} is not a multiple of o_groups {c.o_groups}")
    strange = sorted({r for r in c.compress_ratios if r not in KINDS})
    if strange:
        problems.append(f"compress_ratios holds {strange}; a DeepSeek-V4 layer has ratio 0 (or 1), 4 or 128")
    return problems


def _layout_problems(c: AttentionConfig) -> list[str]:
    """Ids that exist, and plain f32 rows in profile `math` only, where they are the only ones."""
    problems: list[str] = []
    choices = (
        ("main_layout", c.main_layout, MAIN_LAYOUTS, "f32_row"),
        ("index_layout", c.index_layout, tuple(INDEX_LAYOUTS), "index_f32"),
    )
    for name, got, known, plain in choices:
        if got not in known:
            problems.append(f"{name} {got!r} is not one of {', '.join(known)}")
        elif (got == plain) != (c.profile == "math"):
            why = f"{plain!r} and 'math' go together"
            problems.append(f"{name} {got!r} does not go with profile {c.profile!r}: {why}")
    for name, quant in (("output_quant", c.output_quant), ("activation_quant", c.activation_quant)):
        if c.profile == "math" and quant is not None:
            problems.append(f"{name} {quant!r} does not go with profile 'math'; leave it out")
    return problems


_FLASH: dict[str, Any] = {
    "hidden_size": 4096,
    "num_attention_heads": 64,
    "q_lora_rank": 1024,
    "o_groups": 8,
    "o_lora_rank": 1024,
    "index_n_heads": 64,
    "index_topk": 512,
    # One more entry than layers: the last one is the draft (MTP) layer.
    "compress_ratios": (0, 0, *(4, 128) * 20, 4, 0),
}
_PRO: dict[str, Any] = {
    **_FLASH,
    "hidden_size": 7168,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "o_groups": 16,
    "index_topk": 1024,
    "compress_ratios": (128, 128, *(4, 128) * 29, 4, 0),
}
_TINY: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "q_lora_rank": 24,
    "o_groups": 2,
    "o_lora_rank": 16,
    "index_n_heads": 4,
    "index_topk": 4,
    "compress_ratios": (0, 4, 128),
}
PRESETS: dict[str, dict[str, Any]] = {"v4-flash": _FLASH, "v4-pro": _PRO, "tiny": _TINY}
