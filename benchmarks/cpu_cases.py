"""The calls that `cpu_native.py` times: arguments of every op at serving sizes, its bytes, its products."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dsv4core.layout import get_layout
from dsv4core.numerics import tables

ROWS, WINDOW, TOPK = 64, 128, 512
BF16, I32 = torch.bfloat16, torch.int32
NORM = 1e-6
SCALE = 512**-0.5


@dataclass
class Case:
    """One op at one size. `bytes` are read and written once each, `flops` those of its matrix products."""

    name: str
    op: str
    arguments: dict[str, Any]
    bytes: float
    flops: float = 0.0
    peer: dict[str, Any] = field(default_factory=dict[str, Any])


def random_pages(layout: str, count: int) -> Tensor:
    """Pages of legal random rows: one encoded set, repeated; which page is read where is shuffled."""
    found = get_layout(layout)
    some = found.encode_pages(torch.randn(64, ROWS, found.values))
    return some.repeat(-(-count // 64), 1)[:count]


def table(requests: int, width: int) -> Tensor:
    """Every request owns pages all over the cache."""
    return torch.randperm(requests * width).view(requests, width).to(I32)


def attention(kind: str, tokens: int, heads: int, mib: int) -> Case:
    """128 window rows and 512 entries per token out of `mib` MiB of shuffled pages."""
    layout = "fp8_ds_mla"
    size = get_layout(layout).page_bytes(ROWS)
    pages = random_pages(layout, max((mib << 20) // size, 8))
    q, rows = torch.randn(tokens, heads, 512).to(BF16), pages.shape[0] * ROWS
    slots, entries = (torch.randint(0, rows, (tokens, n)) for n in (WINDOW, TOPK))
    sink, out, keys = torch.randn(heads), torch.zeros_like(q), WINDOW + TOPK
    peer = {
        "out": torch.zeros_like(q), "q": q, "pages": pages, "slots": slots, "entries": entries, "sink": sink,
    }  # fmt: skip
    arguments: dict[str, Any] = {"q": q, "attn_sink": sink, "out": out, "scale": SCALE}
    read = keys * 584
    if kind == "decode":
        arguments |= {
            "swa_cache": pages, "swa_slots": slots.to(I32),
            "swa_lens": torch.full((tokens,), WINDOW, dtype=I32),
            "extra_cache": pages, "extra_slots": entries.to(I32), "swa_rows": ROWS, "extra_rows": ROWS,
            "extra_lens": torch.full((tokens,), TOPK, dtype=I32), "layout": layout, "extra_layout": layout,
        }  # fmt: skip
    else:  # a window that moves and entries chosen freely, in a workspace of this chunk
        closed = tokens // 4
        window = torch.arange(tokens).unsqueeze(1) + torch.arange(-WINDOW + 1, 1)
        window = torch.where(window >= 0, window + closed, -1)
        listed = torch.randint(0, max(closed, 1), (tokens, TOPK)).sort(1).values
        indices = torch.cat((listed, window), 1).to(I32)
        arguments |= {
            "kv": torch.randn(closed + tokens, 512).to(BF16), "indices": indices,
            "lens": torch.full((tokens,), keys, dtype=I32),
        }  # fmt: skip
        read = 0
    total = tokens * (read + 2 * heads * 1024) + (0 if read else (tokens + tokens // 4) * 1024)
    name, op = f"{kind} T={tokens} H={heads}", f"sparse_{kind}"
    return Case(name, op, arguments, total, 4.0 * tokens * heads * keys * 512, peer)


def indexer(entries: int, layout: str, tokens: int = 1, heads: int = 64, k: int = TOPK) -> Case:
    """Scores of all entries and the list of the best."""
    width, mx = entries // ROWS, layout == "index_mxfp4"
    pages = random_pages(layout, tokens * width)
    q = torch.randn(tokens, heads, 128).to(torch.float8_e4m3fn)
    scales = None
    if mx:
        q = torch.randint(0, 256, (tokens, heads, 64), dtype=torch.uint8)
        scales = torch.randint(120, 130, (tokens, heads, 4), dtype=torch.uint8)
    arguments = {
        "q": q, "q_scales": scales, "weights": torch.randn(tokens, heads), "k_cache": pages,
        "context_lens": torch.full((tokens,), entries, dtype=I32),
        "token_to_req": torch.arange(tokens, dtype=I32), "block_table": table(tokens, width), "rows": ROWS,
        "layout": layout, "k": k, "workspace_bytes": 64 << 20,
    }  # fmt: skip
    peer = {} if mx or k != TOPK else arguments
    size = tokens * entries * get_layout(layout).record_bytes
    name = f"indexer {layout} T={tokens} entries={entries} k={k}"
    return Case(name, "sparse_indexer", arguments, size, 2.0 * tokens * heads * entries * 128, peer)


def writers(tokens: int, heads: int) -> list[Case]:
    """Everything that is bound by memory, at one number of tokens."""
    layout, cos_sin = "fp8_ds_mla", tables.cos_sin(160000.0, None, tokens + 256)
    positions, count = torch.arange(tokens), -(-tokens // ROWS) + 1
    q, kv = torch.randn(tokens, heads, 512).to(BF16), torch.randn(tokens, 512).to(BF16)
    slots, pages = torch.randperm(count * ROWS)[:tokens], random_pages(layout, count)
    base = {"k_cache": pages, "slot_mapping": slots, "rows": ROWS, "layout": layout}
    turn, head_bytes = {"positions": positions, "cos_sin": cos_sin}, tokens * heads * 1024
    cases = [
        Case("qnorm + rope + insert", "fused_qnorm_rope_kv_insert",
             {"q": q, "kv": kv, **turn, **base, "eps": NORM, "padded_heads": heads},
             2 * head_bytes + tokens * (1024 + 584), peer={"any": 1}),
        Case("insert", "quantize_and_insert_k_cache", {"k": kv, **base}, tokens * (1024 + 584)),
        Case("gather", "dequantize_and_gather_k_cache",
             {"out": torch.zeros(1, tokens, 512, dtype=BF16), "k_cache": pages,
              "seq_lens": torch.tensor([tokens], dtype=I32), "gather_lens": None,
              "block_table": table(1, count), "rows": ROWS, "offset": 0, "layout": layout},
             tokens * (1024 + 584)),
        Case("q and kv norm", "fused_q_kv_rmsnorm",
             {"qr": torch.randn(tokens, 1536).to(BF16), "kv": kv, "q_weight": torch.randn(1536),
              "kv_weight": torch.randn(512), "eps": NORM}, 2 * tokens * 2048 * 2),
        Case("inverse rope", "inverse_rope", {"o": q, **turn}, 2 * head_bytes, peer={"any": 1}),
        Case("inverse rope + fp8", "fused_inv_rope_fp8_quant",
             {"o": q, **turn, "groups": 1, "scale_format": "f32"}, head_bytes * 1.5 + tokens * heads * 16),
        Case("index queries fp8", "fused_indexer_q_rope_quant", _queries(tokens, turn, "fp8"),
             tokens * 64 * (256 + 128), peer={"any": 1}),
        Case("index queries mxfp4", "fused_indexer_q_rope_quant", _queries(tokens, turn, "mxfp4"),
             tokens * 64 * (256 + 68)),
    ]  # fmt: skip
    for ratio, dim, to in (
        (4, 512, layout),
        (128, 512, layout),
        (4, 128, "index_fp8"),
        (4, 128, "index_mxfp4"),
    ):
        cases += _compressor(tokens, ratio, dim, to, cos_sin)
    return cases


def _queries(tokens: int, turn: dict[str, Any], form: str) -> dict[str, Any]:
    return {
        **turn, "q": torch.randn(tokens, 64, 128).to(BF16), "weights": torch.randn(tokens, 64),
        "softmax_scale": 128**-0.5, "head_scale": 0.125, "format": form, "rotate": "none",
    }  # fmt: skip


def _compressor(tokens: int, ratio: int, dim: int, layout: str, cos_sin: Tensor) -> list[Case]:
    """A prefill of one request: every token's state is saved, then every window is closed."""
    width, rows = dim * (2 if ratio == 4 else 1), 8 if ratio == 128 else 4
    pages, entries = -(-tokens // rows), tokens // ratio
    blocks, positions = table(1, pages), torch.arange(tokens)
    slots = blocks[0, positions // rows].long() * rows + positions % rows
    joined = torch.randn(tokens, 2 * width)
    state = torch.randn(pages, rows, 2 * width)
    kv_slots = torch.where((positions + 1) % ratio == 0, positions // ratio, -1)
    window = width // dim * ratio
    save = Case(
        f"save states r={ratio} d={dim}", "save_partial_states",
        {"kv": joined[:, :width], "score": joined[:, width:], "ape": torch.randn(ratio, width),
         "positions": positions, "state_cache": state.clone(), "slot_mapping": slots, "ratio": ratio},
        tokens * width * 16, peer={"any": 1},
    )  # fmt: skip
    compress = Case(
        f"compress r={ratio} {layout}", "compress_norm_rope_store",
        {"state_cache": state, "positions": positions, "token_to_req": torch.zeros(tokens, dtype=I32),
         "slot_mapping": slots, "block_table": blocks, "cos_sin": cos_sin, "norm_weight": torch.randn(dim),
         "k_cache": random_pages(layout, -(-entries // ROWS)), "kv_slot_mapping": kv_slots, "ratio": ratio,
         "head_dim": dim, "rows": ROWS, "layout": layout, "eps": NORM, "rotate": "none"},
        entries * (window * dim * 8 + get_layout(layout).record_bytes),
        peer={} if layout == "index_mxfp4" else {"blocks": blocks, "window": window},
    )  # fmt: skip
    return [compress] if layout == "index_mxfp4" else [save, compress]
