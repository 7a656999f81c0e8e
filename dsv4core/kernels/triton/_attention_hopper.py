"""Attention on NVIDIA Hopper, in Gluon: three groups of four warps that hand tiles of keys to each other.

A program stays on its multiprocessor and takes one (token, 64 heads) after another. One group brings rows of
keys into shared memory, two tiles of 64 at a time. One computes scores, weighs them and sums 256 channels;
one sums the other 256. Tiles, their order and every operation on a value are those of the Triton kernels
(`_attention`). Gluon has no interpreter; other devices never come here.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

NEVER = gl.constexpr(-1.0e30)
LN2 = gl.constexpr(0.6931471805599453)
STEP = gl.constexpr(1.1920928955078125e-07)
LOG2E = gl.constexpr(1.4426950408889634)
SCORES = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16]))
SUMS = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 256, 16]))
OPERAND = gl.constexpr(gl.NVMMASharedLayout(128, 16, 2))
LINE = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))
# A warp copies half a row of 1,024 bytes at a time.
ROWS = gl.constexpr(gl.BlockedLayout([1, 8], [1, 32], [4, 1], [1, 0]))
KEYS = gl.constexpr(gl.BlockedLayout([1], [32], [4], [0]))


@gluon.jit
def _both(a, b, c, d):
    return a + c, b + d


@gluon.jit
def _copy_query(target, q, t, first, heads, q_stride, q_head_stride, live):
    """64 heads of a token to shared memory. Shapes: target [64, 512]."""
    d = gl.arange(0, 512, layout=gl.SliceLayout(0, ROWS))
    for i in gl.static_range(4):
        h = first + i * 16 + gl.arange(0, 16, layout=gl.SliceLayout(1, ROWS))
        rows = q + t * q_stride + h.to(gl.int64) * q_head_stride
        async_copy.async_copy_global_to_shared(
            target.slice(i * 16, 16), rows[:, None] + d[None, :], mask=((h < heads) & live)[:, None]
        )
    async_copy.commit_group()


@gluon.jit
def _weigh(s):
    """`_attention.weigh`. Shapes: [64, 64] -> [64, 64], [64] three times."""
    own = gl.ceil(gl.maximum(gl.max(s, 1), NEVER))
    p = gl.exp2(s - own[:, None])
    w = p.to(gl.bfloat16).to(gl.float32)
    steps = (p + 1.0).to(gl.int32, bitcast=True) - 0x3F800000
    rounded_steps = (w + 1.0).to(gl.int32, bitcast=True) - 0x3F800000
    steps, rounded_steps = gl.reduce((steps, rounded_steps), 1, _both)
    return w, own, steps.to(gl.float32) * STEP, rounded_steps.to(gl.float32) * STEP


@gluon.jit
def _fold(own, added, added_rounded, peak, total, rounded):
    """`_attention.fold`, but for the weights: their factor, all three, and the factor of what was before."""
    new = gl.maximum(peak, own)
    factor = gl.exp2(own - new)
    past = gl.exp2(peak - new)
    return factor, new, total * past + added * factor, rounded * past + added_rounded * factor, past


@gluon.jit
def _count(lists, t):
    """Tiles of the first list of a token, and of both."""
    lens, len_stride, width, extra_lens, extra_len_stride, extra_width, EXTRA = lists
    own = gl.cdiv(gl.maximum(gl.minimum(gl.load(lens + t * len_stride), width), 0), 64)
    both = own
    if EXTRA:
        length = gl.minimum(gl.load(extra_lens + t * extra_len_stride), extra_width)
        both += gl.cdiv(gl.maximum(length, 0), 64)
    return own, both


@gluon.jit
def _store_half(out, acc, share, t, first, heads, out_stride, out_head_stride, START: gl.constexpr):
    value = gl.where(share[:, None] == 0, 0.0, acc * share[:, None]).to(gl.bfloat16)
    h = first + gl.arange(0, 64, layout=gl.SliceLayout(1, SUMS))
    d = START + gl.arange(0, 256, layout=gl.SliceLayout(0, SUMS))
    target = out + t * out_stride + h.to(gl.int64) * out_head_stride
    gl.store(target[:, None] + d[None, :], value, (h < heads)[:, None])


@gluon.jit
def _score(queries, keys, ready, s, n):
    """Start the scores of the tile that comes n-th. Shapes: s [64, 64], only for its layout."""
    mbarrier.wait(ready.index(n % 2), n // 2 % 2)
    fence_async_shared()
    return warpgroup_mma(queries, keys.index(n % 2).permute((1, 0)), s, use_acc=False, is_async=True)


@gluon.jit
def _lead(shared, lists, q, sink, out, lse, factor, work, parts, heads, q_stride, q_head_stride, out_stride,
          out_head_stride):  # fmt: skip
    """Scores, weights and channels 0 to 255."""
    queries, keys, weights, there, pasts, share_of, ready, free, given, ended, taken = shared
    step = gl.num_programs(0)
    pid = gl.program_id(0)
    _copy_query(queries, q, (pid // parts).to(gl.int64), pid % parts * 64, heads, q_stride, q_head_stride, True)
    n = 0
    turn = 0
    for pid in range(pid, work, step):
        t = (pid // parts).to(gl.int64)
        first = pid % parts * 64
        _, tiles = _count(lists, t)
        acc = gl.zeros([64, 256], gl.float32, SUMS)
        peak = gl.zeros([64], gl.float32, gl.SliceLayout(1, SCORES)) + NEVER
        total = gl.zeros([64], gl.float32, gl.SliceLayout(1, SCORES))
        rounded = gl.zeros([64], gl.float32, gl.SliceLayout(1, SCORES))
        async_copy.wait_group(0)
        s = gl.zeros([64, 64], gl.float32, SCORES)
        if tiles > 0:
            s = warpgroup_mma_wait(0, deps=[_score(queries, keys, ready, s, n)])
        for tile in range(tiles):
            here = n % 2
            mine = there.index(here).load(gl.SliceLayout(0, SCORES))
            s = gl.where((mine != 0)[None, :], s * factor, -float("inf"))
            w, own, added, added_rounded = _weigh(s)
            share, peak, total, rounded, past = _fold(own, added, added_rounded, peak, total, rounded)
            weights.index(here).store((w * share[:, None]).to(gl.bfloat16))
            pasts.index(here).store(past)
            fence_async_shared()
            mbarrier.arrive(given.index(here), count=1)
            acc = acc * gl.convert_layout(past, gl.SliceLayout(1, SUMS))[:, None]
            going = warpgroup_mma(weights.index(here), keys.index(here).slice(0, 256, dim=1), acc, is_async=True)
            if tile + 1 < tiles:  # the next scores are on their way before these sums are there
                scores = _score(queries, keys, ready, s, n + 1)
                acc = warpgroup_mma_wait(1, deps=[going])
                mbarrier.arrive(free.index(here), count=1)
                s = warpgroup_mma_wait(0, deps=[scores])
            else:
                acc = warpgroup_mma_wait(0, deps=[going])
                mbarrier.arrive(free.index(here), count=1)
            n += 1
        after = pid + step
        _copy_query(
            queries, q, (after // parts).to(gl.int64), after % parts * 64, heads, q_stride, q_head_stride,
            after < work,
        )  # fmt: skip
        h = first + gl.arange(0, 64, layout=gl.SliceLayout(1, SCORES))
        whole = total + gl.exp2(gl.load(sink + h, h < heads, other=0.0) * LOG2E - peak)
        share = gl.where(total > 0, total / gl.where(total > 0, rounded * whole, 1.0), 0.0)
        natural = gl.where(total > 0, (peak + gl.log2(gl.where(total > 0, total, 1.0))) * LN2, float("inf"))
        gl.store(lse + t * heads + h, natural, h < heads)
        mbarrier.wait(taken, turn % 2 ^ 1)
        share_of.store(share)
        mbarrier.arrive(ended, count=1)
        share = gl.convert_layout(share, gl.SliceLayout(1, SUMS))
        _store_half(out, acc, share, t, first, heads, out_stride, out_head_stride, 0)
        turn += 1
    async_copy.wait_group(0)


@gluon.jit
def _follow(shared, lists, out, work, parts, heads, out_stride, out_head_stride):
    """Channels 256 to 511."""
    queries, keys, weights, there, pasts, share_of, ready, free, given, ended, taken = shared
    n = 0
    turn = 0
    for pid in range(gl.program_id(0), work, gl.num_programs(0)):
        t = (pid // parts).to(gl.int64)
        _, tiles = _count(lists, t)
        acc = gl.zeros([64, 256], gl.float32, SUMS)
        for tile in range(tiles):
            here = n % 2
            mbarrier.wait(ready.index(here), n // 2 % 2)
            mbarrier.wait(given.index(here), n // 2 % 2)
            fence_async_shared()
            acc = acc * pasts.index(here).load(gl.SliceLayout(1, SUMS))[:, None]
            acc = warpgroup_mma(weights.index(here), keys.index(here).slice(256, 256, dim=1), acc, is_async=True)
            acc = warpgroup_mma_wait(0, deps=[acc])
            mbarrier.arrive(free.index(here), count=1)
            n += 1
        mbarrier.wait(ended, turn % 2)
        share = share_of.load(gl.SliceLayout(1, SUMS))
        mbarrier.arrive(taken, count=1)
        _store_half(out, acc, share, t, pid % parts * 64, heads, out_stride, out_head_stride, 256)
        turn += 1


@gluon.jit
def _bring_rows(shared, lists, kv, indices, work, parts, rows, kv_stride, index_stride, column_stride):
    """Rows of a workspace, copied as they are."""
    queries, keys, weights, there, pasts, share_of, ready, free, given, ended, taken = shared
    lens, len_stride, width, extra_lens, extra_len_stride, extra_width, EXTRA = lists
    d = gl.arange(0, 512, layout=gl.SliceLayout(0, ROWS))
    i = gl.arange(0, 16, layout=gl.SliceLayout(1, ROWS))
    m = gl.arange(0, 64, layout=KEYS)
    n = 0
    for pid in range(gl.program_id(0), work, gl.num_programs(0)):
        t = (pid // parts).to(gl.int64)
        length = gl.minimum(gl.load(lens + t * len_stride), width)
        listed = indices + t * index_stride
        for start in range(0, length, 64):
            here = n % 2
            row = gl.load(listed + (start + m).to(gl.int64) * column_stride, start + m < length, other=-1)
            mine = (row >= 0) & (row < rows)
            mbarrier.wait(free.index(here), n // 2 % 2 ^ 1)
            for part in gl.static_range(4):
                j = start + part * 16 + i
                row = gl.load(listed + j.to(gl.int64) * column_stride, j < length, other=-1)
                good = (row >= 0) & (row < rows)
                place = kv + gl.where(good, row, 0).to(gl.int64) * kv_stride
                async_copy.async_copy_global_to_shared(
                    keys.index(here).slice(part * 16, 16), place[:, None] + d[None, :], mask=good[:, None]
                )
            async_copy.mbarrier_arrive(ready.index(here), increment_count=False)
            there.index(here).store(mine.to(gl.int32))
            mbarrier.arrive(ready.index(here), count=1)
            n += 1


@gluon.jit
def _share_memory(BRINGERS: gl.constexpr):
    """Tiles and numbers that the three groups pass on, and the barriers that say when."""
    queries = gl.allocate_shared_memory(gl.bfloat16, [64, 512], OPERAND)
    keys = gl.allocate_shared_memory(gl.bfloat16, [2, 64, 512], OPERAND)
    weights = gl.allocate_shared_memory(gl.bfloat16, [2, 64, 64], OPERAND)
    there = gl.allocate_shared_memory(gl.int32, [2, 64], LINE)
    pasts = gl.allocate_shared_memory(gl.float32, [2, 64], LINE)
    share_of = gl.allocate_shared_memory(gl.float32, [64], LINE)
    ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    given = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    ended = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    taken = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2):
        mbarrier.init(ready.index(i), count=BRINGERS)
        mbarrier.init(free.index(i), count=2)
        mbarrier.init(given.index(i), count=1)
    mbarrier.init(ended, count=1)
    mbarrier.init(taken, count=1)
    return queries, keys, weights, there, pasts, share_of, ready, free, given, ended, taken


@gluon.jit(do_not_specialize=["work", "parts", "rows", "width", "indices", "lens"])
def prefill_hopper_kernel(
    q, kv, indices, lens, sink, out, lse, scale,
    work, parts, heads, rows, width, q_stride, q_head_stride, kv_stride, index_stride, column_stride,
    len_stride, out_stride, out_head_stride,
):  # fmt: skip
    """`sparse_prefill_kernel` for `work` pairs of a token and 64 heads."""
    shared = _share_memory(129)  # every thread that copies, and one for what it stored
    lists = (lens, len_stride, width, lens, len_stride, width, False)
    gl.warp_specialize(
        [
            (_lead, (shared, lists, q, sink, out, lse, scale * LOG2E, work, parts, heads, q_stride,
                     q_head_stride, out_stride, out_head_stride)),
            (_follow, (shared, lists, out, work, parts, heads, out_stride, out_head_stride)),
            (_bring_rows, (shared, lists, kv, indices, work, parts, rows, kv_stride, index_stride,
                           column_stride)),
        ],
        [4, 4], [184, 80],
    )  # fmt: skip


# Rows of 16 keys as groups of a scale, eighths and words: a thread has an eighth of every group of its row.
CODES = gl.constexpr(gl.BlockedLayout([1, 8, 1, 2], [4, 1, 8, 1], [4, 1, 1, 1], [3, 2, 1, 0]))
ROW = gl.constexpr(gl.SliceLayout(1, gl.SliceLayout(2, gl.SliceLayout(3, CODES))))
TAILS = gl.constexpr(gl.BlockedLayout([1, 4], [4, 8], [4, 1], [1, 0]))
PAIRS = gl.constexpr(gl.NVMMASharedLayout(128, 32, 2))


@gluon.jit
def _tile_of(lists, tile, own, t, i, EXTRA: gl.constexpr):
    """Slots of a tile of either list, -1 behind its end. Shapes: i i32 [N] -> i32 [N]."""
    (slots, length, slot_stride, column_stride, extra_slots, extra_length, extra_slot_stride,
     extra_column_stride) = lists  # fmt: skip
    if EXTRA:  # a tile never straddles the lists, so these are choices of scalars
        mine = tile < own
        n = gl.where(mine, tile, tile - own) * 64 + i
        start = gl.where(mine, slots + t * slot_stride, extra_slots + t * extra_slot_stride)
        step = gl.where(mine, column_stride, extra_column_stride)
        length = gl.where(mine, length, extra_length)
    else:
        n = tile * 64 + i
        start = slots + t * slot_stride
        step = column_stride
    return gl.load(start + n.to(gl.int64) * step, n < length, other=-1)


@gluon.jit
def _read(slot, mine, pages, rows: gl.constexpr):
    """Rows of 16 slots as they are kept: codes, the last 64 channels, and all scales.

    Shapes: i32 [16] -> i32 [16, 8, 8, 2], i32 [16, 32], i64 [16], bool [16].
    """
    cache, limit, stride, extra, extra_limit, extra_stride = pages
    live = slot.to(gl.uint32, bitcast=True) < gl.where(mine, limit, extra_limit).to(gl.uint32)
    page = slot // rows
    row = slot - page * rows
    start = gl.where(mine, cache, extra) + page.to(gl.int64) * gl.where(mine, stride, extra_stride)
    g = gl.arange(0, 8, layout=gl.SliceLayout(0, gl.SliceLayout(2, gl.SliceLayout(3, CODES))))
    c = gl.arange(0, 8, layout=gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(3, CODES))))
    e = gl.arange(0, 2, layout=gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(2, CODES))))
    at = g[None, :, None, None] * 16 + c[None, None, :, None] * 2 + e[None, None, None, :]
    words = (start + row * 576).to(gl.pointer_type(gl.int32))
    mask = live[:, None, None, None] & (g < 7)[None, :, None, None]
    codes = gl.load(words[:, None, None, None] + at, mask, other=0)
    scales = gl.load((start + rows * 576 + row * 8).to(gl.pointer_type(gl.int64)), live, other=0)
    e = gl.arange(0, 32, layout=gl.SliceLayout(0, TAILS))
    near = gl.convert_layout(words, gl.SliceLayout(1, TAILS))
    there = gl.convert_layout(live, gl.SliceLayout(1, TAILS))
    tails = gl.load(near[:, None] + 112 + e[None, :], there[:, None], other=0)
    return codes, tails, scales, live


@gluon.jit
def _decode(codes, tails, scales):
    """bf16 values of rows, two a word. Shapes: what `_read` gave -> i32 [16, 256]."""
    g = gl.arange(0, 8, layout=gl.SliceLayout(0, gl.SliceLayout(2, gl.SliceLayout(3, CODES))))[None, :, None, None]
    byte = (scales[:, None, None, None] >> (g * 8).to(gl.int64)).to(gl.int32) & 255
    power = gl.minimum(gl.maximum(byte, 1), 254) * 0x800080  # twice in bf16
    codes, power = gl.broadcast(codes, power)
    first, second = gl.inline_asm_elementwise(
        """
        {
        .reg .b16 a, b, c, d;
        .reg .b32 x, y;
        .reg .f32 p, q, r, s;
        mov.b32 {a, b}, $2;
        cvt.rn.f16x2.e4m3x2 x, a;
        cvt.rn.f16x2.e4m3x2 y, b;
        mov.b32 {a, b}, x;
        mov.b32 {c, d}, y;
        cvt.f32.f16 p, a;
        cvt.f32.f16 q, b;
        cvt.f32.f16 r, c;
        cvt.f32.f16 s, d;
        cvt.rn.bf16x2.f32 x, q, p;
        cvt.rn.bf16x2.f32 y, s, r;
        mul.rn.bf16x2 $0, x, $3;
        mul.rn.bf16x2 $1, y, $3;
        }
        """,
        "=r,=r,r,r", [codes, power], dtype=(gl.int32, gl.int32), is_pure=True, pack=1,
    )  # fmt: skip
    values = gl.join(first, second)
    tails = gl.convert_layout(gl.reshape(tails, (16, 1, 8, 2, 2)), values.type.layout)
    last = (gl.convert_layout(g, gl.SliceLayout(4, values.type.layout)) == 7)[:, :, :, :, None]
    values = gl.where(last, tails, values)
    return gl.reshape(values, (16, 256))


@gluon.jit
def _bring_pages(shared, lists, pages, slots, extra_slots, work, parts, slot_stride, column_stride,
                 extra_slot_stride, extra_column_stride, rows: gl.constexpr):  # fmt: skip
    """Rows of pages, decoded; those of the next tile are on their way meanwhile."""
    queries, keys, weights, there, pasts, share_of, ready, free, given, ended, taken = shared
    lens, len_stride, width, extra_lens, extra_len_stride, extra_width, EXTRA = lists
    pairs = keys._reinterpret(gl.int32, [2, 64, 256], PAIRS)
    i = gl.arange(0, 16, layout=ROW)
    n = 0
    for pid in range(gl.program_id(0), work, gl.num_programs(0)):
        t = (pid // parts).to(gl.int64)
        own, tiles = _count(lists, t)
        length = gl.minimum(gl.load(lens + t * len_stride), width)
        extra_length = length
        if EXTRA:
            extra_length = gl.minimum(gl.load(extra_lens + t * extra_len_stride), extra_width)
        source = (slots, length, slot_stride, column_stride, extra_slots, extra_length, extra_slot_stride,
                  extra_column_stride)  # fmt: skip
        a, a_tails, a_scales, a_live = _read(_tile_of(source, 0, own, t, i, EXTRA), 0 < own, pages, rows)
        b, b_tails, b_scales, b_live = _read(_tile_of(source, 0, own, t, i + 16, EXTRA), 0 < own, pages, rows)
        c, c_tails, c_scales, c_live = _read(_tile_of(source, 0, own, t, i + 32, EXTRA), 0 < own, pages, rows)
        d, d_tails, d_scales, d_live = _read(_tile_of(source, 0, own, t, i + 48, EXTRA), 0 < own, pages, rows)
        a_slot = _tile_of(source, 1, own, t, i, EXTRA)
        b_slot = _tile_of(source, 1, own, t, i + 16, EXTRA)
        c_slot = _tile_of(source, 1, own, t, i + 32, EXTRA)
        d_slot = _tile_of(source, 1, own, t, i + 48, EXTRA)
        for tile in range(tiles):
            here = n % 2
            mine = tile + 1 < own
            mbarrier.wait(free.index(here), n // 2 % 2 ^ 1)
            target = pairs.index(here)
            live = there.index(here)
            target.slice(0, 16).store(_decode(a, a_tails, a_scales))
            live.slice(0, 16).store(a_live.to(gl.int32))
            a, a_tails, a_scales, a_live = _read(a_slot, mine, pages, rows)
            a_slot = _tile_of(source, tile + 2, own, t, i, EXTRA)
            target.slice(16, 16).store(_decode(b, b_tails, b_scales))
            live.slice(16, 16).store(b_live.to(gl.int32))
            b, b_tails, b_scales, b_live = _read(b_slot, mine, pages, rows)
            b_slot = _tile_of(source, tile + 2, own, t, i + 16, EXTRA)
            target.slice(32, 16).store(_decode(c, c_tails, c_scales))
            live.slice(32, 16).store(c_live.to(gl.int32))
            c, c_tails, c_scales, c_live = _read(c_slot, mine, pages, rows)
            c_slot = _tile_of(source, tile + 2, own, t, i + 32, EXTRA)
            target.slice(48, 16).store(_decode(d, d_tails, d_scales))
            live.slice(48, 16).store(d_live.to(gl.int32))
            d, d_tails, d_scales, d_live = _read(d_slot, mine, pages, rows)
            d_slot = _tile_of(source, tile + 2, own, t, i + 48, EXTRA)
            # Those that use the tile fence what they have waited for: a fence here would wait for the loads.
            mbarrier.arrive(ready.index(here), count=1)
            n += 1


@gluon.jit(do_not_specialize=["work", "parts", "limit", "width", "extra_limit", "extra_width", "slots", "lens",
                              "extra_slots", "extra_lens"])  # fmt: skip
def decode_hopper_kernel(
    q, cache, slots, lens, extra, extra_slots, extra_lens, sink, out, lse, scale,
    work, parts, heads, limit, width, extra_limit, extra_width, q_stride, q_head_stride, out_stride,
    out_head_stride, stride, slot_stride, column_stride, len_stride,
    extra_stride, extra_slot_stride, extra_column_stride, extra_len_stride,
    rows: gl.constexpr, EXTRA: gl.constexpr,
):  # fmt: skip
    """`sparse_attention_kernel` over pages in fp8_ds_mla for `work` pairs of a token and 64 heads."""
    shared = _share_memory(1)
    lists = (lens, len_stride, width, extra_lens, extra_len_stride, extra_width, EXTRA)
    gl.warp_specialize(
        [
            (_lead, (shared, lists, q, sink, out, lse, scale * LOG2E, work, parts, heads, q_stride,
                     q_head_stride, out_stride, out_head_stride)),
            (_follow, (shared, lists, out, work, parts, heads, out_stride, out_head_stride)),
            (_bring_pages, (shared, lists, (cache, limit, stride, extra, extra_limit, extra_stride), slots,
                            extra_slots, work, parts, slot_stride, column_stride, extra_slot_stride,
                            extra_column_stride, rows)),
        ],
        [4, 4], [160, 144],
    )  # fmt: skip



@gluon.jit(do_not_specialize=["parts", "tiles", "limit", "width", "extra_limit", "extra_width", "slots", "lens",
                              "extra_slots", "extra_lens"])  # fmt: skip
def weigh_hopper_kernel(
    q, cache, slots, lens, extra, extra_slots, extra_lens, weights, stats, kept, scale,
    parts, tiles, heads, limit, width, extra_limit, extra_width, q_stride, q_head_stride,
    stride, slot_stride, column_stride, len_stride,
    extra_stride, extra_slot_stride, extra_column_stride, extra_len_stride,
    rows: gl.constexpr,
):  # fmt: skip
    """One tile of keys for 64 heads of a token: its weights, and its rows for `use_kept_kernel`."""
    gl.inline_asm_elementwise(
        "griddepcontrol.launch_dependents; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
    )
    pid = gl.program_id(0)
    tile = pid % tiles
    part = pid // tiles
    t = (part // parts).to(gl.int64)
    first = part % parts * 64
    queries = gl.allocate_shared_memory(gl.bfloat16, [64, 512], OPERAND)
    keys = gl.allocate_shared_memory(gl.bfloat16, [64, 512], OPERAND)
    there = gl.allocate_shared_memory(gl.int32, [64], LINE)
    _copy_query(queries, q, t, first, heads, q_stride, q_head_stride, True)
    own = gl.cdiv(width, 64)
    mine = tile < own
    begin = gl.where(mine, tile, tile - own) * 64
    length = gl.load(gl.where(mine, lens + t * len_stride, extra_lens + t * extra_len_stride))
    length = gl.minimum(length, gl.where(mine, width, extra_width))
    lists = (slots, width, slot_stride, column_stride, extra_slots, extra_width, extra_slot_stride,
             extra_column_stride)  # fmt: skip
    pages = (cache, limit, stride, extra, extra_limit, extra_stride)
    i = gl.arange(0, 16, layout=ROW)
    # Slots are read up to the list's width: they need not wait for its length.
    a_slot = _tile_of(lists, tile, own, t, i, True)
    b_slot = _tile_of(lists, tile, own, t, i + 16, True)
    c_slot = _tile_of(lists, tile, own, t, i + 32, True)
    d_slot = _tile_of(lists, tile, own, t, i + 48, True)
    if begin < length:
        a, a_tails, a_scales, a_live = _read(gl.where(begin + i < length, a_slot, -1), mine, pages, rows)
        b, b_tails, b_scales, b_live = _read(gl.where(begin + i + 16 < length, b_slot, -1), mine, pages, rows)
        c, c_tails, c_scales, c_live = _read(gl.where(begin + i + 32 < length, c_slot, -1), mine, pages, rows)
        d, d_tails, d_scales, d_live = _read(gl.where(begin + i + 48 < length, d_slot, -1), mine, pages, rows)
        pairs = keys._reinterpret(gl.int32, [64, 256], PAIRS)
        keep = part % parts == 0  # heads of a token share its rows
        place = kept.to(gl.pointer_type(gl.int32)) + (t * tiles + tile) * 16384
        there.slice(0, 16).store(a_live.to(gl.int32))
        there.slice(16, 16).store(b_live.to(gl.int32))
        there.slice(32, 16).store(c_live.to(gl.int32))
        there.slice(48, 16).store(d_live.to(gl.int32))
        _keep(pairs, place, _decode(a, a_tails, a_scales), keep, 0)
        _keep(pairs, place, _decode(b, b_tails, b_scales), keep, 16)
        _keep(pairs, place, _decode(c, c_tails, c_scales), keep, 32)
        _keep(pairs, place, _decode(d, d_tails, d_scales), keep, 48)
        async_copy.wait_group(0)
        fence_async_shared()
        nothing = gl.zeros([64, 64], gl.float32, SCORES)
        s = warpgroup_mma(queries, keys.permute((1, 0)), nothing, use_acc=False, is_async=True)
        live = there.load(gl.SliceLayout(0, SCORES))
        s = warpgroup_mma_wait(0, deps=[s])
        s = gl.where((live != 0)[None, :], s * (scale * LOG2E), -float("inf"))
        w, peak, total, rounded = _weigh(s)
        h = gl.arange(0, 64, layout=gl.SliceLayout(1, SCORES))
        m = gl.arange(0, 64, layout=gl.SliceLayout(0, SCORES))
        weights += pid.to(gl.int64) * 4096
        gl.store(weights + h[:, None] * 64 + m[None, :], w.to(gl.bfloat16))
        stats += pid.to(gl.int64) * 192
        gl.store(stats + h, peak)
        gl.store(stats + 64 + h, total)
        gl.store(stats + 128 + h, rounded)
    async_copy.wait_group(0)


@gluon.jit
def _keep(pairs, kept, values, keep, FIRST: gl.constexpr):
    """16 rows into shared memory, and into the workspace."""
    pairs.slice(FIRST, 16).store(values)
    form: gl.constexpr = values.type.layout
    i = FIRST + gl.arange(0, 16, layout=gl.SliceLayout(1, form))
    j = gl.arange(0, 256, layout=gl.SliceLayout(0, form))
    gl.store(kept + i[:, None] * 256 + j[None, :], values, keep & (j < 256)[None, :])


MIXED = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16]))
LEFT = gl.constexpr(gl.DotOperandLayout(0, MIXED, 2))
STAGES = gl.constexpr(8)
CHUNKS = gl.constexpr(gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0]))


@gluon.jit
def _copy_kept(weights, keys, numbers, given, kept, stats, tile, own, skip, first, there):
    """Start copying a tile's weights, 64 channels of its rows, and its numbers."""
    place = gl.where(tile < own, tile, tile + skip).to(gl.int64)
    i = gl.arange(0, 64, layout=gl.SliceLayout(1, CHUNKS))[:, None]
    j = gl.arange(0, 64, layout=gl.SliceLayout(0, CHUNKS))[None, :]
    mask = (i < 64) & there
    async_copy.async_copy_global_to_shared(weights, given + place * 4096 + i * 64 + j, mask=mask)
    async_copy.async_copy_global_to_shared(keys, kept + place * 32768 + i * 512 + first + j, mask=mask)
    n = gl.arange(0, 256, layout=NUMBERS)
    async_copy.async_copy_global_to_shared(numbers, stats + place * 192 + n, mask=(n < 192) & there)
    async_copy.commit_group()


NUMBERS = gl.constexpr(gl.BlockedLayout([4], [32], [4], [0]))


@gluon.jit(do_not_specialize=["parts", "tiles", "width", "extra_width", "lens", "extra_lens"])
def use_kept_kernel(
    given, stats, kept, lens, extra_lens, sink, out, lse, parts, tiles, heads, width, extra_width,
    out_stride, out_head_stride, len_stride, extra_len_stride, EXTRA: gl.constexpr,
):  # fmt: skip
    """`use_weights_kernel` for 64 channels of 64 heads of a token, with rows that the first kernel kept."""
    pid = gl.program_id(0)
    first = pid % 8 * 64
    part = pid // 8
    t = (part // parts).to(gl.int64)
    given += part.to(gl.int64) * tiles * 4096
    stats += part.to(gl.int64) * tiles * 192
    kept += t * tiles * 32768
    weights = gl.allocate_shared_memory(gl.bfloat16, [STAGES, 64, 64], OPERAND)
    keys = gl.allocate_shared_memory(gl.bfloat16, [STAGES, 64, 64], OPERAND)
    numbers = gl.allocate_shared_memory(gl.float32, [STAGES, 256], LINE)
    own, count = _count((lens, len_stride, width, extra_lens, extra_len_stride, extra_width, EXTRA), t)
    skip = gl.cdiv(width, 64) - own
    acc = gl.zeros([64, 64], gl.float32, MIXED)
    peak = gl.zeros([64], gl.float32, gl.SliceLayout(1, MIXED)) + NEVER
    total = gl.zeros([64], gl.float32, gl.SliceLayout(1, MIXED))
    rounded = gl.zeros([64], gl.float32, gl.SliceLayout(1, MIXED))
    gl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1)
    for tile in gl.static_range(STAGES - 1):
        _copy_kept(weights.index(tile), keys.index(tile), numbers.index(tile), given, kept, stats, tile, own, skip,
                   first, tile < count)  # fmt: skip
    for tile in range(count):
        ahead = tile + STAGES - 1
        async_copy.wait_group(STAGES - 2)
        here = tile % STAGES
        mine = numbers.index(here)
        top = mine.slice(0, 64).load(gl.SliceLayout(1, MIXED))
        added = mine.slice(64, 64).load(gl.SliceLayout(1, MIXED))
        added_rounded = mine.slice(128, 64).load(gl.SliceLayout(1, MIXED))
        _copy_kept(weights.index(ahead % STAGES), keys.index(ahead % STAGES), numbers.index(ahead % STAGES), given,
                   kept, stats, ahead, own, skip, first, ahead < count)  # fmt: skip
        factor, peak, total, rounded, past = _fold(top, added, added_rounded, peak, total, rounded)
        w = weights.index(here).load(LEFT)
        share = gl.convert_layout(factor, gl.SliceLayout(1, LEFT))[:, None]
        w = (w.to(gl.float32) * share).to(gl.bfloat16)
        fence_async_shared()
        acc = acc * past[:, None]
        acc = warpgroup_mma(w, keys.index(here), acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=[acc])
    async_copy.wait_group(0)
    h = part % parts * 64 + gl.arange(0, 64, layout=gl.SliceLayout(1, MIXED))
    whole = total + gl.exp2(gl.load(sink + h, h < heads, other=0.0) * LOG2E - peak)
    share = gl.where(total > 0, total / gl.where(total > 0, rounded * whole, 1.0), 0.0)
    if first == 0:
        natural = gl.where(total > 0, (peak + gl.log2(gl.where(total > 0, total, 1.0))) * LN2, float("inf"))
        gl.store(lse + t * heads + h, natural, h < heads)
    value = gl.where(share[:, None] == 0, 0.0, acc * share[:, None]).to(gl.bfloat16)
    d = first + gl.arange(0, 64, layout=gl.SliceLayout(0, MIXED))
    target = out + t * out_stride + h.to(gl.int64) * out_head_stride
    gl.store(target[:, None] + d[None, :], value, (h < heads)[:, None])
