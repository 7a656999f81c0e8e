"""`sparse_decode` and `sparse_prefill`: one kernel, whose keys are rows of pages or of a workspace."""

from __future__ import annotations

from ctypes import CDLL
from typing import Any

import torch
from torch import Tensor

from dsv4core.ops import OPS
from dsv4core_cpu.ops._call import LAYOUTS, MAIN, NO_PAGES, function, pages, threads

SOURCE = "pllli plll pl"
NO_LIST = (None, 0, 0, 0, None, 0)


def _listed(slots: Tensor, lens: Tensor) -> tuple[int, int, int, int, int, int]:
    return (
        slots.data_ptr(), slots.stride(0), slots.stride(1), slots.shape[1], lens.data_ptr(), lens.stride(0)
    )  # fmt: skip


def ops(library: CDLL) -> dict[str, Any]:
    """Both ops on one library."""
    attend = function(library, "dsv4_attend", "pll pll p pl ll f ii" + SOURCE + SOURCE)
    decode_body, prefill_body = OPS["sparse_decode"].body, OPS["sparse_prefill"].body

    def run(q: Tensor, sink: Tensor, out: Tensor, scale: float, first: Any, second: Any) -> Tensor:
        lse = sink.new_empty(q.shape[0], q.shape[1])
        attend(
            q.data_ptr(), q.stride(0), q.stride(1), out.data_ptr(), out.stride(0), out.stride(1),
            lse.data_ptr(), sink.data_ptr(), sink.stride(0), q.shape[0], q.shape[1], scale,
            int(q.dtype == torch.float32), threads(), *first, *second,
        )  # fmt: skip
        return lse

    def sparse_decode(
        q: Tensor, swa_cache: Tensor, swa_slots: Tensor, swa_lens: Tensor, extra_cache: Tensor | None,
        extra_slots: Tensor | None, extra_lens: Tensor | None, attn_sink: Tensor, out: Tensor, *,
        scale: float, swa_rows: int, extra_rows: int, layout: str, extra_layout: str,
    ) -> Tensor:  # fmt: skip
        """`dsv4core.ops.sparse_decode`."""
        covered = q.dtype == out.dtype and layout in MAIN
        second = (*NO_PAGES, *NO_LIST)
        if extra_cache is not None:
            covered = covered and extra_layout in MAIN
            if extra_slots is None or extra_lens is None or not covered:
                covered = False
            else:
                second = (*pages(extra_cache, extra_rows, extra_layout), *_listed(extra_slots, extra_lens))
        if not covered:
            return decode_body(
                q, swa_cache, swa_slots, swa_lens, extra_cache, extra_slots, extra_lens, attn_sink, out,
                scale=scale, swa_rows=swa_rows, extra_rows=extra_rows, layout=layout,
                extra_layout=extra_layout,
            )  # fmt: skip
        first = (*pages(swa_cache, swa_rows, layout), *_listed(swa_slots, swa_lens))
        return run(q, attn_sink, out, scale, first, second)

    def sparse_prefill(
        q: Tensor, kv: Tensor, indices: Tensor, lens: Tensor, attn_sink: Tensor, out: Tensor, *, scale: float
    ) -> Tensor:
        """`dsv4core.ops.sparse_prefill`."""
        if q.dtype != out.dtype:
            return prefill_body(q, kv, indices, lens, attn_sink, out, scale=scale)
        layout = LAYOUTS["f32_row" if kv.dtype == torch.float32 else "bf16_row"]
        rows = (kv.data_ptr(), kv.element_size() * kv.stride(0), kv.shape[0], 1, layout)
        return run(q, attn_sink, out, scale, (*rows, *_listed(indices, lens)), (*NO_PAGES, *NO_LIST))

    return {"sparse_decode": sparse_decode, "sparse_prefill": sparse_prefill}
