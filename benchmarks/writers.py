"""Everything around attention that memory binds: norms, rotations, inserts, the compressor, index queries."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from _pages import BF16, I32, ROWS, random_pages, tables

from dsv4core.bench.case import Case
from dsv4core.layout import get_layout
from dsv4core.numerics.tables import cos_sin

TOKENS, HEADS, NORM = 8192, 16, 1e-6
LAYOUT = "fp8_ds_mla"
HEAD_BYTES = TOKENS * HEADS * 1024
KV_BYTES = TOKENS * (1024 + 584)


def cases() -> Iterator[Case]:
    """A prefill of 8,192 tokens with 16 heads, and its compressor."""
    yield _case("qnorm + rope + insert", "fused_qnorm_rope_kv_insert", _insert_all, 2 * HEAD_BYTES + KV_BYTES)
    yield _case("insert", "quantize_and_insert_k_cache", _insert, KV_BYTES)
    yield _case("gather", "dequantize_and_gather_k_cache", _gather, KV_BYTES)
    yield _case("q and kv norm", "fused_q_kv_rmsnorm", _norm, 2 * TOKENS * 2048 * 2)
    yield _case("inverse rope", "inverse_rope", _inverse, 2 * HEAD_BYTES)
    quantised = HEAD_BYTES * 1.5 + TOKENS * HEADS * 16
    yield _case("inverse rope + fp8", "fused_inv_rope_fp8_quant", _inverse_quant, quantised)
    for form, row in (("fp8", 128), ("mxfp4", 68)):
        made = partial(_queries, form)
        yield _case(f"index queries {form}", "fused_indexer_q_rope_quant", made, TOKENS * 64 * (256 + row))
    for ratio, dim in ((4, 512), (128, 512), (4, 128)):
        width = _width(ratio, dim)
        made = partial(_save, ratio, dim)
        yield _case(f"save states r={ratio} d={dim}", "save_partial_states", made, TOKENS * width * 16)
    for ratio, layout in ((4, LAYOUT), (128, LAYOUT), (4, "index_fp8"), (4, "index_mxfp4")):
        found = get_layout(layout)
        moved = TOKENS // ratio * (_width(ratio, found.values) * ratio * 8 + found.record_bytes)
        made = partial(_compress, ratio, layout)
        yield _case(f"compress r={ratio} {layout}", "compress_norm_rope_store", made, moved)


def _case(name: str, op: str, make: Any, size: float) -> Case:
    return Case(name, op, make, size, facts={"tokens": TOKENS})


def _width(ratio: int, dim: int) -> int:
    """Values of a state row's half: windows of ratio 4 overlap, so tokens belong to two of them."""
    return dim * (2 if ratio == 4 else 1)


def _turn() -> dict[str, Any]:
    return {"positions": torch.arange(TOKENS), "cos_sin": cos_sin(160000.0, None, TOKENS + 256)}


def _heads() -> torch.Tensor:
    return torch.randn(TOKENS, HEADS, 512).to(BF16)


def _target() -> dict[str, Any]:
    pages = -(-TOKENS // ROWS) + 1
    return {
        "k_cache": random_pages(LAYOUT, pages), "slot_mapping": torch.randperm(pages * ROWS)[:TOKENS],
        "rows": ROWS, "layout": LAYOUT,
    }  # fmt: skip


def _insert_all() -> dict[str, Any]:
    kv = torch.randn(TOKENS, 512).to(BF16)
    return {"q": _heads(), "kv": kv, **_turn(), **_target(), "eps": NORM, "padded_heads": HEADS}


def _insert() -> dict[str, Any]:
    return {"k": torch.randn(TOKENS, 512).to(BF16), **_target()}


def _gather() -> dict[str, Any]:
    pages = -(-TOKENS // ROWS)
    return {
        "out": torch.zeros(1, TOKENS, 512, dtype=BF16), "k_cache": random_pages(LAYOUT, pages),
        "seq_lens": torch.tensor([TOKENS], dtype=I32), "gather_lens": None, "block_table": tables(1, pages),
        "rows": ROWS, "offset": 0, "layout": LAYOUT,
    }  # fmt: skip


def _norm() -> dict[str, Any]:
    qr, kv = torch.randn(TOKENS, 1536).to(BF16), torch.randn(TOKENS, 512).to(BF16)
    return {"qr": qr, "kv": kv, "q_weight": torch.randn(1536), "kv_weight": torch.randn(512), "eps": NORM}


def _inverse() -> dict[str, Any]:
    return {"o": _heads(), **_turn()}


def _inverse_quant() -> dict[str, Any]:
    return {**_inverse(), "groups": 1, "scale_format": "f32"}


def _queries(form: str) -> dict[str, Any]:
    return {
        **_turn(), "q": torch.randn(TOKENS, 64, 128).to(BF16), "weights": torch.randn(TOKENS, 64),
        "softmax_scale": 128**-0.5, "head_scale": 0.125, "format": form, "rotate": "none",
    }  # fmt: skip


def _state(ratio: int, dim: int) -> dict[str, Any]:
    """State pages of one request and where each token's row is."""
    rows, positions = 8 if ratio == 128 else 4, torch.arange(TOKENS)
    blocks = tables(1, -(-TOKENS // rows))
    return {
        "state_cache": torch.randn(blocks.numel(), rows, 2 * _width(ratio, dim)), "positions": positions,
        "slot_mapping": blocks[0, positions // rows].long() * rows + positions % rows, "block_table": blocks,
        "ratio": ratio,
    }  # fmt: skip


def _save(ratio: int, dim: int) -> dict[str, Any]:
    width, state = _width(ratio, dim), _state(ratio, dim)
    del state["block_table"]
    joined = torch.randn(TOKENS, 2 * width)
    return {"kv": joined[:, :width], "score": joined[:, width:], "ape": torch.randn(ratio, width), **state}


def _compress(ratio: int, layout: str) -> dict[str, Any]:
    """Every window of a prefill closes."""
    dim, state, entries = get_layout(layout).values, _state(ratio, get_layout(layout).values), TOKENS // ratio
    positions = state["positions"]
    return {
        **state, "token_to_req": torch.zeros(TOKENS, dtype=I32), "cos_sin": _turn()["cos_sin"],
        "norm_weight": torch.randn(dim), "k_cache": random_pages(layout, -(-entries // ROWS)),
        "kv_slot_mapping": torch.where((positions + 1) % ratio == 0, positions // ratio, -1),
        "head_dim": dim, "rows": ROWS, "layout": layout, "eps": NORM, "rotate": "none",
    }  # fmt: skip
