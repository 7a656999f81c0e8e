"""Prefill on Hopper: rows of a workspace are copied as they are. See `_hopper`."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from dsv4core.kernels.triton._hopper import LOG2E, ROWS, Lists, follow, lead, share_memory

KEYS = gl.constexpr(gl.BlockedLayout([1], [32], [4], [0]))


@gluon.jit
def _bring_rows(shared, lists, kv, indices, work, parts, rows, kv_stride, index_stride, column_stride):
    """Rows of a workspace, copied as they are."""
    d = gl.arange(0, 512, layout=gl.SliceLayout(0, ROWS))
    i = gl.arange(0, 16, layout=gl.SliceLayout(1, ROWS))
    m = gl.arange(0, 64, layout=KEYS)
    n = 0
    for pid in range(gl.program_id(0), work, gl.num_programs(0)):
        t = (pid // parts).to(gl.int64)
        length = gl.minimum(gl.load(lists.lens + t * lists.len_stride), lists.width)
        listed = indices + t * index_stride
        for start in range(0, length, 64):
            here = n % 2
            row = gl.load(listed + (start + m).to(gl.int64) * column_stride, start + m < length, other=-1)
            mine = (row >= 0) & (row < rows)
            mbarrier.wait(shared.free.index(here), n // 2 % 2 ^ 1)
            for part in gl.static_range(4):
                j = start + part * 16 + i
                row = gl.load(listed + j.to(gl.int64) * column_stride, j < length, other=-1)
                good = (row >= 0) & (row < rows)
                place = kv + gl.where(good, row, 0).to(gl.int64) * kv_stride
                async_copy.async_copy_global_to_shared(
                    shared.keys.index(here).slice(part * 16, 16),
                    place[:, None] + d[None, :],
                    mask=good[:, None],
                )
            async_copy.mbarrier_arrive(shared.ready.index(here), increment_count=False)
            shared.there.index(here).store(mine.to(gl.int32))
            mbarrier.arrive(shared.ready.index(here), count=1)
            n += 1


@gluon.jit(do_not_specialize=["work", "parts", "rows", "width", "indices", "lens"])
def prefill_hopper_kernel(
    q, kv, indices, lens, sink, out, lse, scale,
    work, parts, heads, rows, width, q_stride, q_head_stride, kv_stride, index_stride, column_stride,
    len_stride, out_stride, out_head_stride,
):  # fmt: skip
    """`sparse_prefill_kernel` for `work` pairs of a token and 64 heads."""
    shared = share_memory(129)  # every thread that copies, and one for what it stored
    lists = Lists(lens, len_stride, width, lens, len_stride, width, False)
    gl.warp_specialize(
        [
            (lead, (shared, lists, q, sink, out, lse, scale * LOG2E, work, parts, heads, q_stride,
                     q_head_stride, out_stride, out_head_stride)),
            (follow, (shared, lists, out, work, parts, heads, out_stride, out_head_stride)),
            (_bring_rows, (shared, lists, kv, indices, work, parts, rows, kv_stride, index_stride,
                           column_stride)),
        ],
        [4, 4], [184, 80],
    )  # fmt: skip
