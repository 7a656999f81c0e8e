"""Norms, rotations and the rows of the main caches; every one bit-identical to its torch body."""

from __future__ import annotations

from ctypes import CDLL, c_int
from typing import Any

import torch
from torch import Tensor

from dsv4core.ops import OPS
from dsv4core_cpu.ops._call import BF16_ROWS, Fresh, function, pages, threads

F32 = torch.float32
WIDEST_NORM = 32768  # what the exact sum of squares is good for


def _f32(tensor: Tensor) -> int:
    return int(tensor.dtype == F32)


def _vector(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.stride(0)


def _table(cos_sin: Tensor) -> tuple[int, int, int]:
    return cos_sin.data_ptr(), cos_sin.stride(0), cos_sin.shape[0]


def ops(library: CDLL) -> dict[str, Any]:
    """The ops on one library. Where a kernel reports an index out of range, the body raises its error."""
    fresh = Fresh(library)
    rmsnorm = function(library, "dsv4_rmsnorm", "pli pl i pi f i")
    qnorm = function(library, "dsv4_qnorm_rope_insert", "plli p lll pli pl pll pllli pll f i", c_int)
    insert = function(library, "dsv4_insert", "pli pllli pll i", c_int)
    gather = function(library, "dsv4_gather", "pll ll pllli pl pl pll l l i", c_int)
    save = function(library, "dsv4_save_states", "pl pl pl pl pllll l pll l i", c_int)
    unrope = function(library, "dsv4_inverse_rope", "plli p ll pl pll i", c_int)
    unrope_quant = function(library, "dsv4_inverse_rope_quant", "plli ppp ll pl pll i", c_int)

    def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out = fresh(*x.shape, dtype=x.dtype)
        rmsnorm(
            x.data_ptr(), x.stride(0), _f32(x), out.data_ptr(), *x.shape, weight.data_ptr(), _f32(weight),
            eps, threads(),
        )  # fmt: skip
        return out

    def fused_q_kv_rmsnorm(
        qr: Tensor, kv: Tensor, q_weight: Tensor, kv_weight: Tensor, *, eps: float
    ) -> tuple[Tensor, Tensor]:
        """`dsv4core.ops.fused_q_kv_rmsnorm`."""
        widths = (qr.shape[1], kv.shape[1])
        if min(widths) < 1 or max(widths) > WIDEST_NORM:
            return OPS["fused_q_kv_rmsnorm"].body(qr, kv, q_weight, kv_weight, eps=eps)
        return normed(qr, q_weight, eps), normed(kv, kv_weight, eps)

    def fused_qnorm_rope_kv_insert(
        q: Tensor, kv: Tensor, positions: Tensor, cos_sin: Tensor, k_cache: Tensor, slot_mapping: Tensor, *,
        rows: int, layout: str, eps: float, padded_heads: int,
    ) -> Tensor:  # fmt: skip
        """`dsv4core.ops.fused_qnorm_rope_kv_insert`."""
        tokens, heads, dim = q.shape
        if padded_heads >= heads:
            out = fresh(tokens, padded_heads, dim, dtype=q.dtype)
            refused = qnorm(
                q.data_ptr(), q.stride(0), q.stride(1), _f32(q), out.data_ptr(), tokens, heads, padded_heads,
                *_vector(kv), _f32(kv), *_vector(positions), *_table(cos_sin), *pages(k_cache, rows, layout),
                *_vector(slot_mapping), slot_mapping.shape[0], eps, threads(),
            )  # fmt: skip
            if not refused:
                return out
        return OPS["fused_qnorm_rope_kv_insert"].body(
            q, kv, positions, cos_sin, k_cache, slot_mapping, rows=rows, layout=layout, eps=eps,
            padded_heads=padded_heads,
        )  # fmt: skip

    def quantize_and_insert_k_cache(
        k: Tensor, k_cache: Tensor, slot_mapping: Tensor, *, rows: int, layout: str
    ) -> None:
        """`dsv4core.ops.quantize_and_insert_k_cache`."""
        if insert(
            *_vector(k), _f32(k), *pages(k_cache, rows, layout), *_vector(slot_mapping),
            slot_mapping.shape[0], threads(),
        ):  # fmt: skip
            OPS["quantize_and_insert_k_cache"].body(k, k_cache, slot_mapping, rows=rows, layout=layout)

    def dequantize_and_gather_k_cache(
        out: Tensor, k_cache: Tensor, seq_lens: Tensor, gather_lens: Tensor | None, block_table: Tensor, *,
        rows: int, offset: int, layout: str,
    ) -> None:  # fmt: skip
        """`dsv4core.ops.dequantize_and_gather_k_cache`."""
        covered = out.dtype == torch.bfloat16 and layout in BF16_ROWS
        counts = (None, 0) if gather_lens is None else _vector(gather_lens)
        if not covered or gather(
            out.data_ptr(), out.stride(0), out.stride(1), out.shape[0], out.shape[1],
            *pages(k_cache, rows, layout), *_vector(seq_lens), *counts, block_table.data_ptr(),
            block_table.stride(0), block_table.stride(1), block_table.shape[1], offset, threads(),
        ):  # fmt: skip
            OPS["dequantize_and_gather_k_cache"].body(
                out, k_cache, seq_lens, gather_lens, block_table, rows=rows, offset=offset, layout=layout
            )

    def save_partial_states(
        kv: Tensor, score: Tensor, ape: Tensor, positions: Tensor, state_cache: Tensor, slot_mapping: Tensor,
        *, ratio: int,
    ) -> None:  # fmt: skip
        """`dsv4core.ops.save_partial_states`."""
        if save(
            *_vector(kv), *_vector(score), *_vector(ape), *_vector(positions), state_cache.data_ptr(),
            state_cache.stride(0), state_cache.stride(1), state_cache.shape[0], state_cache.shape[1],
            kv.shape[1], *_vector(slot_mapping), slot_mapping.shape[0], ratio, threads(),
        ):  # fmt: skip
            OPS["save_partial_states"].body(kv, score, ape, positions, state_cache, slot_mapping, ratio=ratio)

    def inverse_rope(o: Tensor, positions: Tensor, cos_sin: Tensor) -> Tensor:
        """`dsv4core.ops.inverse_rope`."""
        out = fresh(*o.shape, dtype=o.dtype)
        refused = unrope(
            o.data_ptr(), o.stride(0), o.stride(1), _f32(o), out.data_ptr(), o.shape[0], o.shape[1],
            *_vector(positions), *_table(cos_sin), threads(),
        )  # fmt: skip
        return OPS["inverse_rope"].body(o, positions, cos_sin) if refused else out

    def fused_inv_rope_fp8_quant(
        o: Tensor, positions: Tensor, cos_sin: Tensor, *, groups: int, scale_format: str
    ) -> tuple[Tensor, Tensor]:
        """`dsv4core.ops.fused_inv_rope_fp8_quant`."""
        op = OPS["fused_inv_rope_fp8_quant"]
        if groups >= 1 and o.shape[1] % groups == 0 and scale_format in ("f32", "ue8m0x4"):
            codes, scales = op.fake(o, positions, cos_sin, groups=groups, scale_format=scale_format)
            fresh.settle(codes)
            where = (scales.data_ptr(), None) if scale_format == "f32" else (None, scales.data_ptr())
            if not unrope_quant(
                o.data_ptr(), o.stride(0), o.stride(1), _f32(o), codes.data_ptr(), *where, o.shape[0],
                o.shape[1], *_vector(positions), *_table(cos_sin), threads(),
            ):  # fmt: skip
                return codes, scales
        return op.body(o, positions, cos_sin, groups=groups, scale_format=scale_format)

    found = (
        fused_q_kv_rmsnorm, fused_qnorm_rope_kv_insert, quantize_and_insert_k_cache,
        dequantize_and_gather_k_cache, save_partial_states, inverse_rope, fused_inv_rope_fp8_quant,
    )  # fmt: skip
    return {f.__name__: f for f in found}
