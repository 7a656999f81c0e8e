"""Attention of many tokens on NVIDIA Hopper, in Gluon: a program for 64 heads, the next rows on their way.

The rows of the next tile are copied to shared memory while this one is used, which Triton's own pipelining
does not bring about here. Tiles, their order and every operation on a value are those of
`sparse_attention_kernel`, so a row has the same bits in both. Eight warps: two warpgroups with 32 keys of the
scores and 256 channels of the sums each. Gluon has no interpreter; other devices never come here.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)

NEVER = gl.constexpr(-1.0e30)
LN2 = gl.constexpr(0.6931471805599453)
LOG2E = gl.constexpr(1.4426950408889634)
SCORES = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 2], [16, 32, 16]))
SUMS = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 2], [16, 256, 16]))
OPERAND = gl.constexpr(gl.NVMMASharedLayout(128, 16, 2))
PLAIN = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
# A warp copies a row of 1,024 or 512 bytes at a time, or four of 128.
ROWS = gl.constexpr(gl.BlockedLayout([1, 8], [1, 32], [8, 1], [1, 0]))
CODES = gl.constexpr(gl.BlockedLayout([1, 16], [1, 32], [8, 1], [1, 0]))
GROUPS = gl.constexpr(gl.BlockedLayout([1, 1, 16], [1, 32, 1], [8, 1, 1], [2, 1, 0]))
TAILS = gl.constexpr(gl.BlockedLayout([1, 8], [4, 8], [8, 1], [1, 0]))


@gluon.jit
def _both(a, b, c, d):
    return a + c, b + d


@gluon.jit
def _copy_query(target, q, t, first, heads, q_stride, q_head_stride):
    """64 heads of a token to shared memory. Shapes: target [64, 512]."""
    h = first + gl.arange(0, 64, layout=gl.SliceLayout(1, ROWS))
    d = gl.arange(0, 512, layout=gl.SliceLayout(0, ROWS))
    rows = q + t * q_stride + h.to(gl.int64) * q_head_stride
    async_copy.async_copy_global_to_shared(target, rows[:, None] + d[None, :], mask=(h < heads)[:, None])


@gluon.jit
def _fold(s, peak, total, rounded):
    """`_attention.weigh` and `_attention.fold`."""
    own = gl.ceil(gl.maximum(gl.max(s, 1), NEVER))
    p = gl.exp2(s - own[:, None])
    w = p.to(gl.bfloat16).to(gl.float32)
    steps = (p + 1.0).to(gl.int32, bitcast=True) - 0x3F800000
    rounded_steps = (w + 1.0).to(gl.int32, bitcast=True) - 0x3F800000
    steps, rounded_steps = gl.reduce((steps, rounded_steps), 1, _both)
    new = gl.maximum(peak, own)
    factor = gl.exp2(own - new)
    past = gl.exp2(peak - new)
    total = total * past + steps.to(gl.float32) * 1.1920928955078125e-07 * factor
    rounded = rounded * past + rounded_steps.to(gl.float32) * 1.1920928955078125e-07 * factor
    return (w * factor[:, None]).to(gl.bfloat16), new, total, rounded, past


@gluon.jit
def _use(keys, queries, weights, live, factor, acc, peak, total, rounded):
    """A tile in shared memory: its scores, its weights, its sums. Shapes: keys [64, 512], live bool [64]."""
    fence_async_shared()
    nothing = gl.zeros([64, 64], gl.float32, SCORES)
    s = warpgroup_mma(queries, keys.permute((1, 0)), nothing, use_acc=False, is_async=True)
    s = warpgroup_mma_wait(0, deps=[s])
    s = gl.where(live[None, :], s * factor, -float("inf"))
    w, peak, total, rounded, past = _fold(s, peak, total, rounded)
    weights.store(w)
    fence_async_shared()
    acc = acc * gl.convert_layout(past, gl.SliceLayout(1, SUMS))[:, None]
    acc = warpgroup_mma(weights, keys, acc, is_async=True)
    acc = warpgroup_mma_wait(0, deps=[acc])
    return acc, peak, total, rounded


@gluon.jit
def _finish(acc, peak, total, rounded, sink, out, lse, t, first, heads, out_stride, out_head_stride):
    """`_attention.finish`, and the stores."""
    h = first + gl.arange(0, 64, layout=gl.SliceLayout(1, SCORES))
    whole = total + gl.exp2(gl.load(sink + h, h < heads, other=0.0) * LOG2E - peak)
    share = gl.where(total > 0, total / gl.where(total > 0, rounded * whole, 1.0), 0.0)
    natural = gl.where(total > 0, (peak + gl.log2(gl.where(total > 0, total, 1.0))) * LN2, float("inf"))
    gl.store(lse + t * heads + h, natural, h < heads)
    share = gl.convert_layout(share, gl.SliceLayout(1, SUMS))[:, None]
    value = gl.where(share == 0, 0.0, acc * share).to(gl.bfloat16)
    h = first + gl.arange(0, 64, layout=gl.SliceLayout(1, SUMS))
    d = gl.arange(0, 512, layout=gl.SliceLayout(0, SUMS))
    target = out + t * out_stride + h.to(gl.int64) * out_head_stride
    gl.store(target[:, None] + d[None, :], value, (h < heads)[:, None])


@gluon.jit
def _listed(indices, n, length, rows, column_stride):
    """Rows of a workspace and which are there. Shapes: n i32 [64]."""
    row = gl.load(indices + n.to(gl.int64) * column_stride, n < length, other=-1)
    return row, (row >= 0) & (row < rows)


@gluon.jit
def _copy_rows(target, kv, row, there, kv_stride):
    d = gl.arange(0, 512, layout=gl.SliceLayout(0, ROWS))
    start = kv + gl.where(there, row, 0).to(gl.int64) * kv_stride
    async_copy.async_copy_global_to_shared(target, start[:, None] + d[None, :], mask=there[:, None])
    async_copy.commit_group()


@gluon.jit(do_not_specialize=["parts", "rows", "width", "indices", "lens"])
def prefill_hopper_kernel(
    q, kv, indices, lens, sink, out, lse, scale,
    parts, heads, rows, width, q_stride, q_head_stride, kv_stride, index_stride, column_stride, len_stride,
    out_stride, out_head_stride,
):  # fmt: skip
    """`sparse_prefill_kernel`: two tiles of rows in shared memory, one used and one on its way."""
    pid = gl.program_id(0)
    t = (pid // parts).to(gl.int64)
    first = (pid % parts) * 64
    queries = gl.allocate_shared_memory(gl.bfloat16, [64, 512], OPERAND)
    keys = gl.allocate_shared_memory(gl.bfloat16, [2, 64, 512], OPERAND)
    weights = gl.allocate_shared_memory(gl.bfloat16, [64, 64], OPERAND)
    _copy_query(queries, q, t, first, heads, q_stride, q_head_stride)
    length = gl.minimum(gl.load(lens + t * len_stride), width)
    indices += t * index_stride
    n = gl.arange(0, 64, layout=gl.SliceLayout(1, ROWS))
    m = gl.arange(0, 64, layout=gl.SliceLayout(0, SCORES))
    row, there = _listed(indices, n, length, rows, column_stride)
    _copy_rows(keys.index(0), kv, row, there, kv_stride)
    row, there = _listed(indices, n + 64, length, rows, column_stride)
    acc = gl.zeros([64, 512], gl.float32, SUMS)
    peak = gl.zeros([64], gl.float32, gl.SliceLayout(1, SCORES)) + NEVER
    total = gl.zeros([64], gl.float32, gl.SliceLayout(1, SCORES))
    rounded = gl.zeros([64], gl.float32, gl.SliceLayout(1, SCORES))
    for start in range(0, length, 64):
        here = start // 64 % 2
        _copy_rows(keys.index(1 - here), kv, row, there, kv_stride)
        row, there = _listed(indices, n + (start + 128), length, rows, column_stride)
        _, live = _listed(indices, m + start, length, rows, column_stride)
        async_copy.wait_group(1)
        acc, peak, total, rounded = _use(
            keys.index(here), queries, weights, live, scale * LOG2E, acc, peak, total, rounded
        )
    async_copy.wait_group(0)
    _finish(acc, peak, total, rounded, sink, out, lse, t, first, heads, out_stride, out_head_stride)


@gluon.jit
def _tile_rows(lists, tile, own, t, i, rows: gl.constexpr):
    """Where the rows of a tile start, in bytes, with their place in the page, and which are there."""
    (slots, length, cache, limit, stride, slot_stride, column_stride, extra_slots, extra_length, extra,
     extra_limit, extra_stride, extra_slot_stride, extra_column_stride) = lists  # fmt: skip
    mine = tile < own
    n = gl.where(mine, tile, tile - own) * 64 + i
    start = gl.where(mine, slots + t * slot_stride, extra_slots + t * extra_slot_stride)
    step = gl.where(mine, column_stride, extra_column_stride)
    slot = gl.load(start + n.to(gl.int64) * step, n < gl.where(mine, length, extra_length), other=-1)
    live = slot.to(gl.uint32, bitcast=True) < gl.where(mine, limit, extra_limit).to(gl.uint32)
    slot = gl.where(live, slot, 0)
    page = slot // rows
    pages = gl.where(mine, cache, extra) + page.to(gl.int64) * gl.where(mine, stride, extra_stride)
    return pages, slot - page * rows, live


@gluon.jit
def _copy_tile(codes, tails, lists, tile, own, t, rows: gl.constexpr):
    """Start copying the rows of a tile; their scales come as a result. Shapes: -> u8 [64, 32]."""
    i = gl.arange(0, 64, layout=gl.SliceLayout(1, CODES))
    d = gl.arange(0, 512, layout=gl.SliceLayout(0, CODES))
    page, row, live = _tile_rows(lists, tile, own, t, i, rows)
    async_copy.async_copy_global_to_shared(
        codes, (page + row * 576)[:, None] + d[None, :], mask=live[:, None]
    )
    i = gl.arange(0, 64, layout=gl.SliceLayout(1, TAILS))
    e = gl.arange(0, 64, layout=gl.SliceLayout(0, TAILS))
    page, row, live = _tile_rows(lists, tile, own, t, i, rows)
    start = (page + row * 576 + 448).to(gl.pointer_type(gl.bfloat16))
    async_copy.async_copy_global_to_shared(tails, start[:, None] + e[None, :], mask=live[:, None])
    async_copy.commit_group()
    i = gl.arange(0, 64, layout=gl.SliceLayout(1, gl.SliceLayout(2, GROUPS)))
    g = gl.arange(0, 32, layout=gl.SliceLayout(0, gl.SliceLayout(2, GROUPS)))
    page, row, live = _tile_rows(lists, tile, own, t, i, rows)
    scale = (page + rows * 576 + row * 8)[:, None] + (g // 4)[None, :]
    return gl.load(scale, live[:, None] & (g < 28)[None, :], other=127)


@gluon.jit(do_not_specialize=["parts", "limit", "width", "extra_limit", "extra_width", "slots", "lens",
                              "extra_slots", "extra_lens"])  # fmt: skip
def decode_hopper_kernel(
    q, cache, slots, lens, extra, extra_slots, extra_lens, sink, out, lse, scale,
    parts, heads, limit, width, extra_limit, extra_width, q_stride, q_head_stride, out_stride,
    out_head_stride, stride, slot_stride, column_stride, len_stride,
    extra_stride, extra_slot_stride, extra_column_stride, extra_len_stride,
    rows: gl.constexpr, EXTRA: gl.constexpr,
):  # fmt: skip
    """`sparse_attention_kernel` over pages of one layout, fp8_ds_mla: codes travel while a tile is used."""
    pid = gl.program_id(0)
    t = (pid // parts).to(gl.int64)
    first = (pid % parts) * 64
    queries = gl.allocate_shared_memory(gl.bfloat16, [64, 512], OPERAND)
    keys = gl.allocate_shared_memory(gl.bfloat16, [64, 512], OPERAND)
    weights = gl.allocate_shared_memory(gl.bfloat16, [64, 64], OPERAND)
    codes = gl.allocate_shared_memory(gl.uint8, [64, 512], PLAIN)
    tails = gl.allocate_shared_memory(gl.bfloat16, [64, 64], PLAIN)
    _copy_query(queries, q, t, first, heads, q_stride, q_head_stride)
    length = gl.maximum(gl.minimum(gl.load(lens + t * len_stride), width), 0)
    own = gl.cdiv(length, 64)
    tiles = own
    extra_length = length
    if EXTRA:
        extra_length = gl.maximum(gl.minimum(gl.load(extra_lens + t * extra_len_stride), extra_width), 0)
        tiles += gl.cdiv(extra_length, 64)
    lists = (slots, length, cache, limit, stride, slot_stride, column_stride, extra_slots, extra_length,
             extra, extra_limit, extra_stride, extra_slot_stride, extra_column_stride)  # fmt: skip
    m = gl.arange(0, 64, layout=gl.SliceLayout(0, SCORES))
    acc = gl.zeros([64, 512], gl.float32, SUMS)
    peak = gl.zeros([64], gl.float32, gl.SliceLayout(1, SCORES)) + NEVER
    total = gl.zeros([64], gl.float32, gl.SliceLayout(1, SCORES))
    rounded = gl.zeros([64], gl.float32, gl.SliceLayout(1, SCORES))
    bytes_ = _copy_tile(codes, tails, lists, 0, own, t, rows)
    for tile in range(tiles):
        async_copy.wait_group(0)
        x = codes.load(CODES)
        r = tails.load(TAILS)
        exponent = gl.minimum(gl.maximum(bytes_.to(gl.int32), 1), 254)
        bytes_ = _copy_tile(codes, tails, lists, tile + 1, own, t, rows)
        _, _, live = _tile_rows(lists, tile, own, t, m, rows)
        x = gl.convert_layout(gl.reshape(x, (64, 32, 16)), GROUPS)
        power = (exponent << 7).to(gl.int16).to(gl.bfloat16, bitcast=True)
        k = x.to(gl.float8e4nv, bitcast=True).to(gl.bfloat16) * power[:, :, None]
        keys.store(gl.convert_layout(gl.reshape(k, (64, 512)), CODES))
        keys.slice(448, 64, dim=1).store(r)
        acc, peak, total, rounded = _use(
            keys, queries, weights, live, scale * LOG2E, acc, peak, total, rounded
        )
    async_copy.wait_group(0)
    _finish(acc, peak, total, rounded, sink, out, lse, t, first, heads, out_stride, out_head_stride)
