"""The indexer's queries and the entries that close a window; bit-identical to the torch bodies."""

from __future__ import annotations

from ctypes import CDLL, c_int
from typing import Any

from torch import Tensor

from dsv4core.layout import get_layout
from dsv4core.ops import OPS
from dsv4core.ops.fused_indexer_q_rope_quant import FORMATS
from dsv4core_cpu.ops._call import Fresh, function, pages, threads
from dsv4core_cpu.ops.writers import _f32, _table, _vector

NUMBERS = {"fp8": 0, "fp8_f32": 1, "mxfp4": 2, "f32": 3}  # `enum Format` in native/index_writers.cpp


def ops(library: CDLL) -> dict[str, Any]:
    """Both ops on one library. Where a kernel reports an index out of range, the body raises its error."""
    fresh = Fresh(library)
    compress = function(library, "dsv4_compress", "pllll l pl pl pll pllll pll pi pllli pl l i f i i", c_int)
    query = function(library, "dsv4_index_query", "pl plli ll pll plli ff ii p p p i", c_int)

    def compress_norm_rope_store(
        state_cache: Tensor, positions: Tensor, token_to_req: Tensor, slot_mapping: Tensor,
        block_table: Tensor, cos_sin: Tensor, norm_weight: Tensor, k_cache: Tensor, kv_slot_mapping: Tensor,
        *, ratio: int, head_dim: int, rows: int, layout: str, eps: float, rotate: str,
    ) -> None:  # fmt: skip
        """`dsv4core.ops.compress_norm_rope_store`."""
        target, width = get_layout(layout), state_cache.shape[2] // 2
        wanted = head_dim * (2 if ratio == 4 else 1)
        covered = ratio in (4, 128) and target.width == head_dim and target.rotate == rotate
        covered = covered and state_cache.shape[2] == 2 * wanted
        if not covered or compress(
            state_cache.data_ptr(), *state_cache.stride()[:2], *state_cache.shape[:2], width,
            *_vector(positions), *_vector(token_to_req), *_vector(slot_mapping), slot_mapping.shape[0],
            block_table.data_ptr(), *block_table.stride(), *block_table.shape, *_table(cos_sin),
            norm_weight.data_ptr(), _f32(norm_weight), *pages(k_cache, rows, layout),
            *_vector(kv_slot_mapping), ratio, head_dim, eps, rotate == "hadamard", threads(),
        ):  # fmt: skip
            OPS["compress_norm_rope_store"].body(
                state_cache, positions, token_to_req, slot_mapping, block_table, cos_sin, norm_weight,
                k_cache, kv_slot_mapping, ratio=ratio, head_dim=head_dim, rows=rows, layout=layout, eps=eps,
                rotate=rotate,
            )  # fmt: skip

    def fused_indexer_q_rope_quant(
        positions: Tensor, q: Tensor, cos_sin: Tensor, weights: Tensor, *,
        softmax_scale: float, head_scale: float, format: str, rotate: str,
    ) -> tuple[Tensor, Tensor | None, Tensor]:  # fmt: skip
        """`dsv4core.ops.fused_indexer_q_rope_quant`."""
        op = OPS["fused_indexer_q_rope_quant"]
        options = {
            "softmax_scale": softmax_scale, "head_scale": head_scale, "format": format, "rotate": rotate,
        }  # fmt: skip
        if format in FORMATS and rotate in ("none", "hadamard"):
            values, scales, folded = op.fake(positions, q, cos_sin, weights, **options)
            fresh.settle(values)
            if not query(
                *_vector(positions), q.data_ptr(), *q.stride()[:2], _f32(q), *q.shape[:2], *_table(cos_sin),
                weights.data_ptr(), *weights.stride(), _f32(weights), softmax_scale, head_scale,
                NUMBERS[format], rotate == "hadamard", values.data_ptr(),
                None if scales is None else scales.data_ptr(), folded.data_ptr(), threads(),
            ):  # fmt: skip
                return values, scales, folded
        return op.body(positions, q, cos_sin, weights, **options)

    return {
        "compress_norm_rope_store": compress_norm_rope_store,
        "fused_indexer_q_rope_quant": fused_indexer_q_rope_quant,
    }
