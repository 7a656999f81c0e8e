"""Native kernels against the torch bodies, byte by byte, on inputs chosen to hurt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from native_world import BF16, COS_SIN, F32, I32, INDEX, MAIN, World, both

SEEDS = range(3)
DTYPES = [BF16, F32]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", MAIN)
def test_insert(ops, layout: str, dtype: torch.dtype, seed: int) -> None:
    def make() -> dict[str, Any]:
        w = World(seed)
        return {
            "k": w.values(70, 640, dtype=dtype)[:, 100:612], "k_cache": w.pages(layout, 7, 11, filled=False),
            "slot_mapping": w.slots(66, 7, 11), "rows": 7, "layout": layout,
        }  # fmt: skip

    both(ops.quantize_and_insert_k_cache, "quantize_and_insert_k_cache", make)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", MAIN)
def test_qnorm_insert(ops, layout: str, dtype: torch.dtype, seed: int) -> None:
    def make() -> dict[str, Any]:
        w, heads = World(seed), (1, 3, 17)[seed]
        return {
            "q": w.values(heads, 21, 520, dtype=dtype).transpose(0, 1)[..., 4:516],
            "kv": w.values(21, 512, dtype=dtype), "positions": w.ints(0, 8192, 42)[::2] % 4096,
            "cos_sin": COS_SIN, "k_cache": w.pages(layout, 64, 2, filled=False),
            "slot_mapping": w.slots(19, 64, 2), "rows": 64, "layout": layout, "eps": 1e-6,
            "padded_heads": heads + seed,
        }  # fmt: skip

    both(ops.fused_qnorm_rope_kv_insert, "fused_qnorm_rope_kv_insert", make)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 24, 1536, 5000])
def test_rmsnorm(ops, width: int, dtype: torch.dtype, seed: int) -> None:
    def make() -> dict[str, Any]:
        w = World(seed)
        joined = w.values(9, width + 512, dtype=dtype)
        return {
            "qr": joined[:, :width], "kv": joined[:, width:],
            "q_weight": w.values(width, dtype=DTYPES[seed % 2]),
            "kv_weight": w.floats(512, dtype=BF16), "eps": (1e-6, 1e-5, 1e-3)[seed],
        }  # fmt: skip

    both(ops.fused_q_kv_rmsnorm, "fused_q_kv_rmsnorm", make)


@pytest.mark.parametrize("layout", MAIN)
@pytest.mark.parametrize("given", [True, False])
def test_gather(ops, layout: str, given: bool) -> None:
    dtype = F32 if layout == "f32_row" else BF16

    def make() -> dict[str, Any]:
        w = World(3)
        pages = w.pages(layout, 5, 40)
        if layout != "f32_row":
            codes = w.ints(0, 256, *pages.shape).to(torch.uint8)
            nan = ((codes & 0x7F) == 0x7F) | (codes == 0x80)  # bits of a NaN are not part of the contract
            pages.copy_(codes.masked_fill(nan, 0x3A))
        lens = torch.tensor([0, 1, 37, 50], dtype=I32)
        counts = torch.tensor([0, 0, 12, 50], dtype=I32) if given else None
        table = torch.randperm(40, generator=w.generator).view(4, 10).to(I32)
        table[0], table[1, 1:], table[2, 8:] = -1, -1, -1
        return {
            "out": torch.full((4, 60, 520), 7.0, dtype=dtype)[:, :, 8:], "k_cache": pages, "seq_lens": lens,
            "gather_lens": counts, "block_table": table, "rows": 5, "offset": 3, "layout": layout,
        }  # fmt: skip

    both(ops.dequantize_and_gather_k_cache, "dequantize_and_gather_k_cache", make)


@pytest.mark.parametrize("ratio", [4, 128])
def test_states(ops, ratio: int) -> None:
    def make() -> dict[str, Any]:
        w = World(ratio)
        joined = w.values(40, 600, dtype=F32)
        return {
            "kv": joined[:, :256], "score": joined[:, 300:556], "ape": w.floats(ratio, 256),
            "positions": w.ints(0, 1000, 40), "state_cache": w.floats(12, 6, 512)[:, :4],
            "slot_mapping": w.slots(38, 4, 12), "ratio": ratio,
        }  # fmt: skip

    both(ops.save_partial_states, "save_partial_states", make)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("ratio", [4, 128])
@pytest.mark.parametrize("layout", MAIN + INDEX)
def test_compress(ops, layout: str, ratio: int, seed: int) -> None:
    dim = 128 if layout in INDEX else 512

    def make() -> dict[str, Any]:
        w, coff = World(seed), 2 if ratio == 4 else 1
        states = w.floats(60, 11, 2 * coff * dim)[:, :8]  # a gap behind each page
        states[..., coff * dim :] *= (1.0, 30.0, 200.0)[seed]  # scores far enough apart to underflow
        states[..., : coff * dim] *= torch.exp2(w.ints(-20, 20, 60, 8, 1).float())
        closing = w.ints(0, 3, 9) * ratio + ratio - 1
        positions = torch.where(w.ints(0, 4, 9) == 0, closing - 1, closing)
        table = torch.stack([torch.randperm(60, generator=w.generator)[:48] for _ in range(3)]).to(I32)
        return {
            "state_cache": states, "positions": positions, "token_to_req": w.ints(0, 3, 9).to(I32),
            "slot_mapping": w.slots(8, 8, 60), "block_table": table, "cos_sin": COS_SIN,
            "norm_weight": w.floats(dim, dtype=DTYPES[seed % 2]),
            "k_cache": w.pages(layout, 5, 4, filled=False), "kv_slot_mapping": w.slots(9, 5, 4),
            "ratio": ratio, "head_dim": dim, "rows": 5, "layout": layout, "eps": 1e-6,
            "rotate": "hadamard" if "hadamard" in layout else "none",
        }  # fmt: skip

    both(ops.compress_norm_rope_store, "compress_norm_rope_store", make)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rotate", ["none", "hadamard"])
@pytest.mark.parametrize("form", ["fp8", "fp8_f32", "mxfp4", "f32"])
def test_index_queries(ops, form: str, rotate: str, dtype: torch.dtype, seed: int) -> None:
    def make() -> dict[str, Any]:
        w = World(seed)
        return {
            "positions": w.ints(0, 4096, 13), "q": w.values(13, 5, 140, dtype=dtype)[..., 6:134],
            "cos_sin": COS_SIN, "weights": w.values(13, 9, dtype=DTYPES[seed % 2])[:, 2:7],
            "softmax_scale": 0.0883, "head_scale": 0.125, "format": form, "rotate": rotate,
        }  # fmt: skip

    both(ops.fused_indexer_q_rope_quant, "fused_indexer_q_rope_quant", make)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_inverse_rope(ops, dtype: torch.dtype, seed: int) -> None:
    def make() -> dict[str, Any]:
        w = World(seed)
        o = w.values(6, 11, 516, dtype=dtype).transpose(0, 1)[..., 2:514]
        return {"o": o, "positions": w.ints(0, 4096, 11), "cos_sin": COS_SIN}

    both(ops.inverse_rope, "inverse_rope", make)
    for form in ("f32", "ue8m0x4"):
        both(
            ops.fused_inv_rope_fp8_quant, "fused_inv_rope_fp8_quant",
            lambda form=form: {**make(), "groups": 3, "scale_format": form},
        )  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_lists(ops, seed: int) -> None:
    def tables() -> dict[str, Any]:
        w = World(seed)
        table = w.ints(-1, 50, 7, 4, dtype=I32).T
        return {"token_to_req": w.ints(0, 4, 30, dtype=I32), "block_table": table}

    def global_topk() -> dict[str, Any]:
        w = World(seed + 9)
        found = tables()
        found["block_table"] = found["block_table"].abs()
        return {
            "topk": w.ints(-3, 7 * 16, 23, 30, dtype=I32).T, **found, "is_valid": w.ints(0, 4, 30) > 0,
            "rows": 16,
        }  # fmt: skip

    def slot_mapping() -> dict[str, Any]:
        w = World(seed + 5)
        positions, slots = w.ints(0, 500, 60)[::2], w.ints(-2, 9, 54)[::2]
        return {"positions": positions, "slot_mapping": slots, **tables(), "ratio": 4, "rows": 16}

    both(ops.compute_global_topk_indices_and_lens, "compute_global_topk_indices_and_lens", global_topk)
    both(ops.compressed_slot_mapping, "compressed_slot_mapping", slot_mapping)


@pytest.mark.parametrize("k", [1, 7, 512])
def test_topk(ops, k: int) -> None:
    def make() -> dict[str, Any]:
        w = World(k)
        logits = w.ints(-40, 40, 12, 3000).float() / 8  # many ties
        logits[2], logits[3, ::2] = -torch.inf, -0.0
        lens = w.ints(0, 3001, 12, dtype=I32)
        logits[1, int(lens[1]) :] = torch.nan  # what nobody sees may be anything
        return {"logits": logits, "context_lens": lens, "k": k}

    both(ops.indexer_topk, "indexer_topk", make)
