"""What the reference computes: the sizes of a layer and the roundings that implementations differ in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Profile = Literal["math", "vllm", "official", "sglang"]


@dataclass(frozen=True)
class Yarn:
    """YaRN parameters of the compressed layers; there is no magnitude factor."""

    factor: float = 16.0
    original_positions: int = 65_536
    beta_fast: float = 32.0
    beta_slow: float = 1.0


@dataclass(frozen=True)
class ReferenceConfig:
    """Sizes of one attention layer, as plain numbers."""

    hidden_size: int
    heads: int
    q_lora_rank: int
    o_groups: int
    o_lora_rank: int
    index_heads: int
    index_topk: int
    head_dim: int = 512
    rope_dim: int = 64
    index_dim: int = 128
    window: int = 128
    eps: float = 1e-6
    theta: float = 10_000.0
    compress_theta: float = 160_000.0
    yarn: Yarn | None = Yarn()

    @classmethod
    def v4_flash(cls) -> ReferenceConfig:
        """Sizes of V4-Flash."""
        return cls(4_096, 64, 1_024, 8, 1_024, 64, 512)

    @classmethod
    def tiny(cls) -> ReferenceConfig:
        """Sizes for unit tests, in which the window and a top-k of 4 still bite."""
        return cls(64, 4, 24, 2, 16, 4, 4)


@dataclass(frozen=True)
class Options:
    """Where values are rounded; every default is "not at all".

    `act_dtype` "bf16" rounds the projections qr, kv and q (and the indexer's q and weights) and what their
    norms return. With `kv_quant` a key row is rounded to bf16 after RoPE and its first 448 channels go
    through e4m3 in blocks of 64. Hadamard acts on the indexer's q and k together: one of the two alone
    cannot be said.
    """

    act_dtype: Literal["fp32", "bf16"] = "fp32"
    kv_quant: Literal["none", "fp8_b64_nope"] = "none"
    idx_hadamard: Literal["none", "both"] = "none"
    idx_quant: Literal["none", "mxfp4_b32", "fp8_pow2_b128", "fp8_f32_b128"] = "none"
    idx_score_dtype: Literal["fp32", "bf16"] = "fp32"
    q_norm_rounding: Literal["fp32", "bf16_chain"] = "fp32"
    compress_rounding: Literal["none", "fused", "per_op"] = "none"
    p_dtype: Literal["fp32", "bf16"] = "fp32"
    o_quant: Literal["none", "fp8_1x128"] = "none"

    @classmethod
    def preset(cls, profile: Profile) -> Options:
        """Options that describe one implementation.

        `math` is the unquantised mathematics, `vllm` and `sglang` those engines' roundings, `official`
        DeepSeek's own inference code. Raises KeyError for another name.
        """
        quantised = cls("bf16", "fp8_b64_nope", compress_rounding="fused", p_dtype="bf16")
        return {
            "math": cls(),
            "vllm": replace(quantised, idx_quant="fp8_pow2_b128"),
            "sglang": replace(quantised, idx_quant="fp8_f32_b128", idx_hadamard="both"),
            "official": replace(
                quantised,
                idx_quant="mxfp4_b32",
                idx_hadamard="both",
                idx_score_dtype="bf16",
                q_norm_rounding="bf16_chain",
                compress_rounding="per_op",
            ),
        }[profile]
