"""Slots and index lists: integers, equal to the torch bodies."""

from __future__ import annotations

from ctypes import CDLL, c_int
from typing import Any

from torch import Tensor

from dsv4core.ops import OPS
from dsv4core_cpu.ops._call import function, threads


def ops(library: CDLL) -> dict[str, Any]:
    """The three ops on one library. Where arguments do not fit together, the body raises its error."""
    compressed = function(library, "dsv4_compressed_slots", "pl l pll pl pllll ll p", c_int)
    to_slots = function(library, "dsv4_global_topk", "pllll pl pllll pl l pp i", c_int)
    combine = function(library, "dsv4_combine", "plll pl pl pl l lll ll p l p i")

    def compressed_slot_mapping(
        positions: Tensor, slot_mapping: Tensor, token_to_req: Tensor, block_table: Tensor, *,
        ratio: int, rows: int,
    ) -> Tensor:  # fmt: skip
        """`dsv4core.ops.compressed_slot_mapping`."""
        out = positions.new_empty(positions.shape)
        if compressed(
            positions.data_ptr(), positions.stride(0), positions.shape[0], slot_mapping.data_ptr(),
            slot_mapping.stride(0), slot_mapping.shape[0], token_to_req.data_ptr(), token_to_req.stride(0),
            block_table.data_ptr(), *block_table.stride(), *block_table.shape, ratio, rows, out.data_ptr(),
        ):  # fmt: skip
            return OPS["compressed_slot_mapping"].body(
                positions, slot_mapping, token_to_req, block_table, ratio=ratio, rows=rows
            )
        return out

    def compute_global_topk_indices_and_lens(
        topk: Tensor, token_to_req: Tensor, block_table: Tensor, is_valid: Tensor, *, rows: int
    ) -> tuple[Tensor, Tensor]:
        """`dsv4core.ops.compute_global_topk_indices_and_lens`."""
        slots, lens = topk.new_empty(topk.shape), topk.new_empty(topk.shape[0])
        if to_slots(
            topk.data_ptr(), *topk.stride(), *topk.shape, token_to_req.data_ptr(), token_to_req.stride(0),
            block_table.data_ptr(), *block_table.stride(), *block_table.shape, is_valid.data_ptr(),
            is_valid.stride(0), rows, slots.data_ptr(), lens.data_ptr(), threads(),
        ):  # fmt: skip
            return OPS["compute_global_topk_indices_and_lens"].body(
                topk, token_to_req, block_table, is_valid, rows=rows
            )
        return slots, lens

    def combine_topk_swa_indices(
        topk: Tensor, query_start_loc: Tensor, seq_lens: Tensor, gather_lens: Tensor, *,
        window: int, ratio: int, top_k: int, M: int, N: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """`dsv4core.ops.combine_topk_swa_indices`."""
        op, sizes = OPS["combine_topk_swa_indices"], (window, ratio, top_k, M, N)
        given = (topk, query_start_loc, seq_lens, gather_lens)
        options = dict(zip(("window", "ratio", "top_k", "M", "N"), sizes, strict=True))
        fits = query_start_loc.shape[0] == seq_lens.shape[0] + 1 and window >= 1
        fits = fits and 0 <= top_k <= topk.shape[1] and (not top_k or ratio >= 1)
        if not fits or not topk.shape[0] or not seq_lens.shape[0]:
            return op.body(*given, **options)
        out, lens = op.fake(*given, **options)
        combine(
            topk.data_ptr(), *topk.stride(), topk.shape[0], query_start_loc.data_ptr(),
            query_start_loc.stride(0), seq_lens.data_ptr(), seq_lens.stride(0), gather_lens.data_ptr(),
            gather_lens.stride(0), seq_lens.shape[0], *sizes, out.data_ptr(), out.shape[1], lens.data_ptr(),
            threads(),
        )  # fmt: skip
        return out, lens

    return {
        "compressed_slot_mapping": compressed_slot_mapping,
        "compute_global_topk_indices_and_lens": compute_global_topk_indices_and_lens,
        "combine_topk_swa_indices": combine_topk_swa_indices,
    }
