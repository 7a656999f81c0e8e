"""Calls that reach every kernel in every form, by name: what is compiled ahead of time and what is tuned."""

from collections.abc import Callable
from typing import Any

import torch

from dsv4core.config import AttentionConfig
from dsv4core.kernels.triton import portable
from dsv4core.layout import get_layout
from dsv4core.samples import Size, sample

Call = tuple[str, dict[str, Any]]
PAGED = ("dequantize_and_gather_k_cache", "indexer_logits", "sparse_indexer")
CONFIGS: dict[str, dict[str, str]] = {
    "vllm": {},
    "official": {"profile": "official"},
    "sglang": {"profile": "sglang"},
    "mxfp4": {"index_layout": "index_mxfp4"},
    "other": {"main_layout": "fp8_row", "index_layout": "index_fp8_ue8m0x4"},
    "bf16": {"main_layout": "bf16_row"},
    "fnuz": {"main_layout": "fp8_ds_mla_fnuz"},
}
"""Changes to a configuration that together reach every layout; for comparisons of bytes."""


def calls(tokens: int = 60, few: int = 3, context: int = 200) -> dict[str, Callable[[], Call]]:
    """Name -> a function that makes an op's name and the arguments of one legal call, in host memory.

    `tokens` is the size of a call, `few` that of the calls that attention cuts differently. Where every token
    has pages of its own, there are at most 256.
    """
    owners = min(tokens, 256)

    def plain(op: str, tokens: int = tokens, context: int = context, **config: Any) -> Call:
        size = Size(tokens, context, AttentionConfig.preset("v4-flash", **config))
        return op, sample(op, size)

    def decode(tokens: int = owners, heads: int = 64, extra: int = 512, **config: Any) -> Call:
        op, given = plain("sparse_decode", tokens, **config)
        width = given["extra_slots"].shape[1]
        given["swa_slots"] = given["swa_slots"].repeat(1, 2)
        given["extra_slots"] = given["extra_slots"].repeat(1, -(-extra // width))
        for name in ("swa", "extra"):
            given[f"{name}_lens"] = torch.full_like(given[f"{name}_lens"], given[f"{name}_slots"].shape[1])
        for name in ("q", "out"):
            given[name] = given[name][:, :1].repeat(1, heads, 1)
        given["attn_sink"] = given["attn_sink"][:1].repeat(heads)
        return op, given

    def changed(made: Call, **changes: Any) -> Call:
        return made[0], {**made[1], **changes}

    short = min(context, 40)
    return {
        **{op: (lambda op=op: plain(op)) for op in portable.KERNELS if op not in (*PAGED, "sparse_decode")},
        **{op: (lambda op=op: plain(op, owners)) for op in PAGED},
        "fused_indexer_q_rope_quant mxfp4 hadamard": lambda: plain(
            "fused_indexer_q_rope_quant", profile="official"
        ),
        "quantize_and_insert_k_cache bf16_row": lambda: plain(
            "quantize_and_insert_k_cache", main_layout="bf16_row"
        ),
        "indexer_topk short rows": lambda: plain("indexer_topk", context=short),
        "compress ratio 128": lambda: closing(tokens, 128, "fp8_ds_mla"),
        "compress index_fp8": lambda: closing(tokens, 4, "index_fp8"),
        "compress index_mxfp4_hadamard": lambda: closing(tokens, 4, "index_mxfp4_hadamard"),
        "indexer_logits mxfp4": lambda: plain("indexer_logits", owners, profile="official"),
        "sparse_indexer in chunks": lambda: changed(
            plain("sparse_indexer", few), k=64, workspace_bytes=1664
        ),
        "sparse_prefill few tokens": lambda: plain("sparse_prefill", few),
        "sparse_decode 128 heads": lambda: decode(heads=128),
        "sparse_decode 64 heads": lambda: decode(),
        "sparse_decode 64 heads, few tokens": lambda: decode(1),
        "sparse_decode 32 heads": lambda: decode(heads=32),
        "sparse_decode 16 heads": lambda: decode(heads=16),
        "sparse_decode bf16_row": lambda: decode(main_layout="bf16_row"),
        "sparse_decode two layouts": lambda: changed(decode(), extra_layout="fp8_ds_mla_fnuz"),
    }  # fmt: skip


def products(tokens: int = 60, inputs: int = 512) -> dict[str, Callable[[], Call]]:
    """The same for kernels of stored weights and their inputs, which serve no op of the contract."""
    rows, made = -(-tokens // 128) * 128, torch.Generator().manual_seed(tokens)

    def weight(format: str, width: int, scales: torch.Tensor) -> Call:
        codes = torch.randint(127, (rows, width), generator=made, dtype=torch.uint8)  # 127 is NaN in e4m3
        return "dequantise_weight", {
            "weight": codes, "scales": scales, "global_scale": None, "format": format
        }  # fmt: skip

    return {
        "quantise_activation": lambda: (
            "quantise_activation", {"x": torch.randn(tokens, inputs, generator=made).bfloat16()}
        ),
        "dequantise_weight fp8_block": lambda: weight(
            "fp8_block", inputs, torch.rand(rows // 128, inputs // 128, generator=made)
        ),
        "dequantise_weight mxfp4": lambda: weight(
            "mxfp4", inputs // 2, torch.full((rows, inputs // 32), 120, dtype=torch.uint8)
        ),
    }  # fmt: skip


def closing(tokens: int, ratio: int, layout: str) -> Call:
    """One request of so many windows, each closed by its last token; states are random."""
    found = get_layout(layout)
    dim = found.width or 0
    width, rows = dim * (2 if ratio == 4 else 1), 4 if ratio == 4 else 8
    count = tokens * ratio
    pages, entries = -(-count // rows), tokens
    t = torch.arange(count)
    made = torch.Generator().manual_seed(tokens)
    return "compress_norm_rope_store", {
        "state_cache": torch.randn(pages, rows, 2 * width, generator=made), "positions": t,
        "token_to_req": torch.zeros(count, dtype=torch.int32), "slot_mapping": t.clone(),
        "block_table": torch.randperm(pages, generator=made).to(torch.int32).view(1, -1),
        "cos_sin": torch.randn(count, 64, generator=made),
        "norm_weight": torch.randn(dim, generator=made).bfloat16(),
        "k_cache": torch.zeros(-(-entries // 64), found.page_bytes(64), dtype=torch.uint8),
        "kv_slot_mapping": torch.where((t + 1) % ratio == 0, t // ratio, -1), "ratio": ratio,
        "head_dim": dim, "rows": 64, "layout": layout, "eps": 1e-6, "rotate": found.rotate,
    }  # fmt: skip
