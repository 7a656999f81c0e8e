"""The attention layer of transformers, driven through its public classes, as a float32 oracle.

Three traps shape this file: a mask must always be a tensor (without one the layer ignores the indexer's
choice and causality), the cosines must come from the layer's own rotary module, and the released layer
schedule and YaRN are not transformers' defaults.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import DynamicCache
from transformers.models.deepseek_v4.configuration_deepseek_v4 import DeepseekV4Config
from transformers.models.deepseek_v4.modeling_deepseek_v4 import (
    DeepseekV4Attention,
    DeepseekV4RotaryEmbedding,
)

RATIOS = {"swa": 0, "csa": 4, "hca": 128}
LAYER_TYPES = {
    "swa": "sliding_attention",
    "csa": "compressed_sparse_attention",
    "hca": "heavily_compressed_attention",
}
SIZES: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "q_lora_rank": 24,
        "o_groups": 2,
        "o_lora_rank": 16,
        "index_n_heads": 4,
        "index_topk": 4,
    },
    "v4-flash": {
        "hidden_size": 4096,
        "num_attention_heads": 64,
        "q_lora_rank": 1024,
        "o_groups": 8,
        "o_lora_rank": 1024,
        "index_n_heads": 64,
        "index_topk": 512,
    },
}
ODD_CHUNKS = (1, 5, 3, 17, 2, 131, 64)

# (checkpoint name, name in transformers); the layer kinds have a prefix of this list.
_NAMES = (
    ("wq_a", "q_a_proj.weight"),
    ("q_norm", "q_a_norm.weight"),
    ("wq_b", "q_b_proj.weight"),
    ("wkv", "kv_proj.weight"),
    ("kv_norm", "kv_norm.weight"),
    ("wo_a", "o_a_proj.weight"),
    ("wo_b", "o_b_proj.weight"),
    ("attn_sink", "sinks"),
    ("compressor.wkv", "compressor.kv_proj.weight"),
    ("compressor.wgate", "compressor.gate_proj.weight"),
    ("compressor.ape", "compressor.position_bias"),
    ("compressor.norm", "compressor.kv_norm.weight"),
    ("indexer.wq_b", "compressor.indexer.q_b_proj.weight"),
    ("indexer.weights_proj", "compressor.indexer.scorer.weights_proj.weight"),
    ("indexer.compressor.wkv", "compressor.indexer.kv_proj.weight"),
    ("indexer.compressor.wgate", "compressor.indexer.gate_proj.weight"),
    ("indexer.compressor.ape", "compressor.indexer.position_bias"),
    ("indexer.compressor.norm", "compressor.indexer.kv_norm.weight"),
)


def odd_chunks(length: int, sizes: Sequence[int] = ODD_CHUNKS) -> list[int]:
    """Chunk lengths that add up to `length` and line up with neither 4 nor 128."""
    chunks: list[int] = []
    while sum(chunks) < length:
        chunks.append(min(sizes[len(chunks) % len(sizes)], length - sum(chunks)))
    return chunks


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    """Relative L2 difference."""
    return float((got.double() - want.double()).norm() / want.double().norm())


class Oracle:
    """One layer of transformers with random weights of realistic statistics, one sequence, batch of one."""

    def __init__(
        self,
        kind: str,
        size: str,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        topk: int | None = None,
    ) -> None:
        sizes = {
            **SIZES[size],
            "head_dim": 512,
            "qk_rope_head_dim": 64,
            "sliding_window": 128,
            "index_head_dim": 128,
        }
        if topk is not None:
            sizes["index_topk"] = topk
        self.kind, self.dtype = kind, dtype
        self.config = DeepseekV4Config(
            vocab_size=16,
            num_hidden_layers=1,
            num_key_value_heads=1,
            layer_types=[LAYER_TYPES[kind]],
            mlp_layer_types=["moe"],
            compress_rates={LAYER_TYPES["csa"]: 4, LAYER_TYPES["hca"]: 128},
            rope_theta=1e4,
            compress_rope_theta=1.6e5,
            max_position_embeddings=2**20,
            attn_implementation="eager",
            rope_parameters={
                "rope_type": "yarn",
                "factor": 16,
                "original_max_position_embeddings": 65_536,
                "beta_fast": 32,
                "beta_slow": 1,
            },
            **sizes,
        )
        self.layer = DeepseekV4Attention(self.config, 0).to(dtype).eval().requires_grad_(False)
        self.rotary = DeepseekV4RotaryEmbedding(self.config)
        self.scores: list[torch.Tensor] = []
        self.picks: list[torch.Tensor] = []
        self._fill(seed)
        if kind == "csa":
            indexer = self.layer.compressor.indexer
            indexer.scorer.register_forward_hook(lambda _m, _a, result: self.scores.append(result[0]))
            indexer.register_forward_hook(lambda _m, _a, result: self.picks.append(result[0]))

    def _fill(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in self.weights().items():
            index = name.startswith("indexer.")
            mean = 0.0
            if name == "attn_sink":
                std = 1.0
            elif name.endswith("ape"):
                std = 0.153 if index else 0.124
            elif name.endswith("norm"):
                mean, std = (0.685, 0.26) if index else (0.967, 0.19)
            elif name.endswith("wgate"):
                std = (0.0512 if index else 0.0388) * (4096 / self.config.hidden_size) ** 0.5
            else:
                std = tensor.shape[-1] ** -0.5
            tensor.normal_(mean, std, generator=generator)

    def weights(self) -> dict[str, torch.Tensor]:
        """The layer's own tensors under the checkpoint's names (without prefix and ".weight")."""
        own = dict(self.layer.named_parameters())
        return {name: own[theirs] for name, theirs in _NAMES if theirs in own}

    def run(self, hidden: torch.Tensor, chunks: Sequence[int] | None = None) -> torch.Tensor:
        """Output of every token of a sequence, in one stateless call or in consecutive cached ones.

        Shapes: hidden [S, hidden] -> [S, hidden]
        """
        self.scores.clear()
        self.picks.clear()
        self.cache = None if chunks is None else DynamicCache(config=self.config)
        window, outputs, start = self.config.sliding_window, [], 0
        for count in chunks or [len(hidden)]:
            x = hidden[None, start : start + count]
            positions = torch.arange(start, start + count)
            kept = min(start, window - 1)
            distance = positions[:, None] - torch.arange(start - kept, start + count)[None, :]
            allowed = (distance >= 0) & (distance < window)
            mask = torch.zeros(allowed.shape, dtype=self.dtype)
            mask = mask.masked_fill(~allowed, torch.finfo(self.dtype).min)[None, None]
            tables = {
                name: self.rotary(x, position_ids=positions[None], layer_type=name)
                for name in ("main", "compress")
            }
            with torch.no_grad():
                result = self.layer(
                    x,
                    position_embeddings=tables,
                    position_ids=positions[None],
                    attention_mask=mask,
                    past_key_values=self.cache,
                )
            outputs.append(result[0][0])
            start += count
        return torch.cat(outputs)

    def entries(self, name: str = "compressor") -> torch.Tensor:
        """Compressed entries after a cached run; `name` is "compressor" or "indexer".

        Shapes: -> [entries, 512 or 128]
        """
        assert self.cache is not None, "entries are kept by cached runs only: pass chunks"
        return self.cache.layers[0].compressed_kv[name][0]
