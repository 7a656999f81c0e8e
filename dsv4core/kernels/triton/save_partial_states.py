"""Keep every token's compressor projection until its window closes."""

import triton
import triton.language as tl
from torch import Tensor

from dsv4core.kernels.triton._early import start_early
from dsv4core.kernels.triton._launch import launch, pieces, power
from dsv4core.kernels.triton._tuning import tuned


@triton.jit(do_not_specialize=["count", "positions", "slots"])
def save_partial_states_kernel(
    kv, score, ape, positions, state, slots, count, kv_stride, score_stride, ape_stride, position_stride,
    page_stride, row_stride, slot_stride,
    ROWS_OF_PAGE: tl.constexpr, RATIO: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One program copies ROWS tokens; the bias of the position inside its window goes on the score."""
    start_early(EARLY)
    t = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    slot = tl.load(slots + t * slot_stride, t < count, other=-1)
    live = slot >= 0
    slot = tl.where(live, slot, 0)
    phase = tl.load(positions + t * position_stride, live, other=0) % RATIO
    row = state + ((slot // ROWS_OF_PAGE) * page_stride + (slot % ROWS_OF_PAGE) * row_stride)[:, None]
    d = tl.arange(0, BLOCK)[None, :]
    mask = live[:, None] & (d < WIDTH)
    tl.store(row + d, tl.load(kv + t[:, None] * kv_stride + d, mask), mask)
    bias = tl.load(ape + phase[:, None] * ape_stride + d, mask)
    tl.store(row + WIDTH + d, tl.load(score + t[:, None] * score_stride + d, mask) + bias, mask)


def save_partial_states(
    kv: Tensor, score: Tensor, ape: Tensor, positions: Tensor, state_cache: Tensor, slot_mapping: Tensor, *,
    ratio: int,
) -> None:  # fmt: skip
    """Store [kv | score + ape[position mod ratio]] of every live token in its state row.

    Shapes: kv, score f32 [T, W], ape f32 [ratio, W], positions i64 [T], state_cache f32 [N, rows, 2W]
    (written), slot_mapping i64 [<= T] (negative: skip).
    """
    count, width = slot_mapping.shape[0], kv.shape[1]
    meta = tuned("save_partial_states", kv, width=width)
    launch(
        save_partial_states_kernel, pieces(count, meta["ROWS"]), kv, kv, score, ape, positions, state_cache,
        slot_mapping, count, kv.stride(0), score.stride(0), ape.stride(0), positions.stride(0),
        state_cache.stride(0), state_cache.stride(1), slot_mapping.stride(0),
        ROWS_OF_PAGE=state_cache.shape[1], RATIO=ratio, WIDTH=width, BLOCK=power(width), **meta,
    )  # fmt: skip
