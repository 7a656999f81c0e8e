"""Write already rotated key rows into pages."""

import triton
import triton.language as tl
from torch import Tensor

from dsv4core.kernels.triton._launch import alignment, launch, pieces, supported
from dsv4core.kernels.triton._pages import MAIN, store_main_rows
from dsv4core.kernels.triton._tuning import native_e4m3, tuned
from dsv4core.kernels.triton.numerics import widen


@triton.jit(do_not_specialize=["count", "slots"])
def quantize_and_insert_kernel(
    k, cache, slots, count, k_stride, page_stride, slot_stride,
    rows: tl.constexpr, LAYOUT: tl.constexpr, ALIGN: tl.constexpr, HARDWARE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One program quantises and writes ROWS rows; a negative slot writes nothing."""
    t = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    slot = tl.load(slots + t * slot_stride, t < count, other=-1)
    live = slot >= 0
    d = tl.arange(0, 512)[None, :]
    j = tl.arange(0, 64)[None, :]
    start = k + t[:, None] * k_stride
    nope = tl.load(start + d, live[:, None] & (d < 448), other=0.0)
    tail = widen(tl.load(start + 448 + j, live[:, None] & (j < 64), other=0.0))
    slot = tl.where(live, slot, 0)
    store_main_rows(cache, page_stride, slot, live, nope, tail, rows, LAYOUT, ALIGN, HARDWARE)


def quantize_and_insert_k_cache(
    k: Tensor, k_cache: Tensor, slot_mapping: Tensor, *, rows: int, layout: str
) -> None:
    """Quantise one rotated key row per slot and write it into its page.

    Shapes: k bf16 [T, 512], k_cache u8 [N, B] (written), slot_mapping i64 [<= T] (negative: skip).
    """
    supported("quantize_and_insert_k_cache", "layout", layout, MAIN)
    count, meta = slot_mapping.shape[0], tuned("quantize_and_insert", k)
    launch(
        quantize_and_insert_kernel, pieces(count, meta["ROWS"]), k, k, k_cache, slot_mapping, count,
        k.stride(0), k_cache.stride(0), slot_mapping.stride(0),
        rows=rows, LAYOUT=layout, ALIGN=alignment(k_cache), HARDWARE=native_e4m3(k), **meta,
    )  # fmt: skip
