"""Attention on NVIDIA Hopper, in Gluon: groups of four warps that hand tiles of keys to each other.

A program stays on its multiprocessor and takes one (token, 64 heads) after another. One group brings tiles
of 64 rows into shared memory, two at a time (`_hopper_prefill`, `_hopper_decode`). `lead` computes scores,
weighs them and sums 256 channels, `follow` sums the other 256. Tiles, their order and what happens to a value
are as in `_attention`, except that a score is one sum over all channels. Gluon has no interpreter; other
devices never come here.
"""

from typing import Any, NamedTuple

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
LOG2E = gl.constexpr(1.4426950408889634)
STEP = gl.constexpr(1.1920928955078125e-07)  # 2^-23
SCORES = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16]))
SUMS = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 256, 16]))
OPERAND = gl.constexpr(gl.NVMMASharedLayout(128, 16, 2))
LINE = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))
# A warp copies half a row of 1,024 bytes at a time.
ROWS = gl.constexpr(gl.BlockedLayout([1, 8], [1, 32], [4, 1], [1, 0]))


class Shared(NamedTuple):
    """What the groups of a program share: tiles and numbers in shared memory, and barriers.

    `ready` and `free`: a tile of keys is there, has been used; `given`: its weights are there; `ended` and
    `taken`: the same for the share of the weights in the output.
    """

    queries: Any
    keys: Any
    weights: Any
    there: Any
    pasts: Any
    share: Any
    ready: Any
    free: Any
    given: Any
    ended: Any
    taken: Any


class Lists(NamedTuple):
    """Lengths of a token's lists of keys, and how wide they are."""

    lens: Any
    len_stride: Any
    width: Any
    extra_lens: Any
    extra_len_stride: Any
    extra_width: Any
    EXTRA: Any


@gluon.jit
def let_next_start():
    """The next kernel may take its place beside this one, where it waits."""
    gl.inline_asm_elementwise(
        "griddepcontrol.launch_dependents; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def wait_for_last():
    """What kernels before have written is there, and what they read may be written."""
    gl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def _both(a, b, c, d):
    return a + c, b + d


@gluon.jit
def copy_query(target, q, part, parts, heads, q_stride, q_head_stride, live):
    """64 heads of a token to shared memory: those of the part-th piece of work. Shapes: target [64, 512]."""
    t = (part // parts).to(gl.int64)
    d = gl.arange(0, 512, layout=gl.SliceLayout(0, ROWS))
    for i in gl.static_range(4):
        h = part % parts * 64 + i * 16 + gl.arange(0, 16, layout=gl.SliceLayout(1, ROWS))
        rows = q + t * q_stride + h.to(gl.int64) * q_head_stride
        async_copy.async_copy_global_to_shared(
            target.slice(i * 16, 16), rows[:, None] + d[None, :], mask=((h < heads) & live)[:, None]
        )
    async_copy.commit_group()


@gluon.jit
def weigh(s):
    """`_attention.weigh`. Shapes: [64, 64] -> [64, 64], [64] three times."""
    own = gl.ceil(gl.maximum(gl.max(s, 1), NEVER))
    p = gl.exp2(s - own[:, None])
    w = p.to(gl.bfloat16).to(gl.float32)
    steps = (p + 1.0).to(gl.int32, bitcast=True) - 0x3F800000
    rounded_steps = (w + 1.0).to(gl.int32, bitcast=True) - 0x3F800000
    steps, rounded_steps = gl.reduce((steps, rounded_steps), 1, _both)
    return w, own, steps.to(gl.float32) * STEP, rounded_steps.to(gl.float32) * STEP


@gluon.jit
def fold(own, added, added_rounded, peak, total, rounded):
    """`_attention.fold`, but for the weights: their factor, all three, and the factor of what was before."""
    new = gl.maximum(peak, own)
    factor = gl.exp2(own - new)
    past = gl.exp2(peak - new)
    return factor, new, total * past + added * factor, rounded * past + added_rounded * factor, past


@gluon.jit
def finish(peak, total, rounded, sink):
    """`_attention.finish`. Shapes: f32 [H] four times -> f32 [H] twice."""
    whole = total + gl.exp2(sink * LOG2E - peak)
    share = gl.where(total > 0, total / gl.where(total > 0, rounded * whole, 1.0), 0.0)
    return share, gl.where(total > 0, (peak + gl.log2(gl.where(total > 0, total, 1.0))) * LN2, float("inf"))


@gluon.jit
def count(lists, t):
    """Tiles of the first list of a token, and of both."""
    own = gl.cdiv(gl.maximum(gl.minimum(gl.load(lists.lens + t * lists.len_stride), lists.width), 0), 64)
    both = own
    if lists.EXTRA:
        length = gl.minimum(gl.load(lists.extra_lens + t * lists.extra_len_stride), lists.extra_width)
        both += gl.cdiv(gl.maximum(length, 0), 64)
    return own, both


@gluon.jit
def share_memory(BRINGERS: gl.constexpr):
    """Tiles and numbers that the three groups pass on, and the barriers that say when."""
    queries = gl.allocate_shared_memory(gl.bfloat16, [64, 512], OPERAND)
    keys = gl.allocate_shared_memory(gl.bfloat16, [2, 64, 512], OPERAND)
    weights = gl.allocate_shared_memory(gl.bfloat16, [2, 64, 64], OPERAND)
    there = gl.allocate_shared_memory(gl.int32, [2, 64], LINE)
    pasts = gl.allocate_shared_memory(gl.float32, [2, 64], LINE)
    share = gl.allocate_shared_memory(gl.float32, [64], LINE)
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
    return Shared(queries, keys, weights, there, pasts, share, ready, free, given, ended, taken)


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
def lead(shared, lists, q, sink, out, lse, factor, work, parts, heads, q_stride, q_head_stride, out_stride,
          out_head_stride):  # fmt: skip
    """Scores, weights and channels 0 to 255."""
    step = gl.num_programs(0)
    copy_query(shared.queries, q, gl.program_id(0), parts, heads, q_stride, q_head_stride, True)
    n = 0
    for pid in range(gl.program_id(0), work, step):
        t = (pid // parts).to(gl.int64)
        first = pid % parts * 64
        _, tiles = count(lists, t)
        acc = gl.zeros([64, 256], gl.float32, SUMS)
        peak = gl.zeros([64], gl.float32, gl.SliceLayout(1, SCORES)) + NEVER
        total = gl.zeros([64], gl.float32, gl.SliceLayout(1, SCORES))
        rounded = gl.zeros([64], gl.float32, gl.SliceLayout(1, SCORES))
        async_copy.wait_group(0)
        s = gl.zeros([64, 64], gl.float32, SCORES)
        if tiles > 0:
            s = warpgroup_mma_wait(0, deps=[_score(shared.queries, shared.keys, shared.ready, s, n)])
        for tile in range(tiles):
            here = n % 2
            mine = shared.there.index(here).load(gl.SliceLayout(0, SCORES))
            s = gl.where((mine != 0)[None, :], s * factor, -float("inf"))
            w, own, added, added_rounded = weigh(s)
            share, peak, total, rounded, past = fold(own, added, added_rounded, peak, total, rounded)
            shared.weights.index(here).store((w * share[:, None]).to(gl.bfloat16))
            shared.pasts.index(here).store(past)
            fence_async_shared()
            mbarrier.arrive(shared.given.index(here), count=1)
            acc = acc * gl.convert_layout(past, gl.SliceLayout(1, SUMS))[:, None]
            going = warpgroup_mma(
                shared.weights.index(here), shared.keys.index(here).slice(0, 256, dim=1), acc, is_async=True
            )
            if tile + 1 < tiles:  # the next scores are on their way before these sums are there
                scores = _score(shared.queries, shared.keys, shared.ready, s, n + 1)
                acc = warpgroup_mma_wait(1, deps=[going])
                mbarrier.arrive(shared.free.index(here), count=1)
                s = warpgroup_mma_wait(0, deps=[scores])
            else:
                acc = warpgroup_mma_wait(0, deps=[going])
                mbarrier.arrive(shared.free.index(here), count=1)
            n += 1
        after = pid + step
        copy_query(shared.queries, q, after, parts, heads, q_stride, q_head_stride, after < work)
        h = first + gl.arange(0, 64, layout=gl.SliceLayout(1, SCORES))
        share, natural = finish(peak, total, rounded, gl.load(sink + h, h < heads, other=0.0))
        gl.store(lse + t * heads + h, natural, h < heads)
        mbarrier.wait(shared.taken, pid // step % 2 ^ 1)
        shared.share.store(share)
        mbarrier.arrive(shared.ended, count=1)
        share = gl.convert_layout(share, gl.SliceLayout(1, SUMS))
        _store_half(out, acc, share, t, first, heads, out_stride, out_head_stride, 0)
    async_copy.wait_group(0)


@gluon.jit
def follow(shared, lists, out, work, parts, heads, out_stride, out_head_stride):
    """Channels 256 to 511."""
    n = 0
    for pid in range(gl.program_id(0), work, gl.num_programs(0)):
        t = (pid // parts).to(gl.int64)
        _, tiles = count(lists, t)
        acc = gl.zeros([64, 256], gl.float32, SUMS)
        for _ in range(tiles):
            here = n % 2
            mbarrier.wait(shared.ready.index(here), n // 2 % 2)
            mbarrier.wait(shared.given.index(here), n // 2 % 2)
            fence_async_shared()
            acc = acc * shared.pasts.index(here).load(gl.SliceLayout(1, SUMS))[:, None]
            acc = warpgroup_mma(
                shared.weights.index(here), shared.keys.index(here).slice(256, 256, dim=1), acc, is_async=True
            )
            acc = warpgroup_mma_wait(0, deps=[acc])
            mbarrier.arrive(shared.free.index(here), count=1)
            n += 1
        mbarrier.wait(shared.ended, pid // gl.num_programs(0) % 2)
        share = shared.share.load(gl.SliceLayout(1, SUMS))
        mbarrier.arrive(shared.taken, count=1)
        _store_half(out, acc, share, t, pid % parts * 64, heads, out_stride, out_head_stride, 256)
