"""Lists of rows as FlashMLA reads them: only -1 is nothing, nothing behind a length, padded widths."""

import triton
import triton.language as tl
from torch import Tensor

from dsv4core.kernels.triton._launch import launch, power
from dsv4core_cuda.capability import round_up


@triton.jit(do_not_specialize=["slots", "lens", "width", "limit"])
def clean_list_kernel(
    slots, lens, out, out_lens, width, limit, slot_stride, column_stride, len_stride,
    OUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a token: its list with -1 for all that is no row, and its length within the list."""
    t = tl.program_id(0).to(tl.int64)
    length = tl.minimum(tl.maximum(tl.load(lens + t * len_stride), 0), width)
    i = tl.arange(0, BLOCK)
    slot = tl.load(slots + t * slot_stride + i.to(tl.int64) * column_stride, i < length, other=-1)
    row = slot.to(tl.int64)
    slot = tl.where((row >= 0) & (row < limit), slot, -1)
    tl.store(out + t * OUT + i, slot, i < OUT)
    tl.store(out_lens + t, length)


def clean(slots: Tensor, lens: Tensor, limit: int, multiple: int) -> tuple[Tensor, Tensor]:
    """The same rows in the same order for a reader that trusts its lists.

    Shapes: slots i32 [T, K] (any strides, anything behind a length), lens i32 [T], rows count in [0, limit)
    -> slots i32 [T, K rounded up to `multiple`], -1 for nothing; lens i32 [T] in [0, K].
    """
    width = round_up(slots.shape[1], multiple)
    out, out_lens = slots.new_empty(slots.shape[0], width), slots.new_empty(slots.shape[0])
    launch(
        clean_list_kernel, slots.shape[0], slots, slots, lens, out, out_lens, slots.shape[1], limit,
        slots.stride(0), slots.stride(1), lens.stride(0), OUT=width, BLOCK=power(width),
    )  # fmt: skip
    return out, out_lens
