"""Decode of few tokens on Hopper: `_attention_split`, but rows are decoded once, for both kernels."""

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

from dsv4core.kernels.triton._hopper import (
    LINE,
    LOG2E,
    NEVER,
    OPERAND,
    SCORES,
    Lists,
    copy_query,
    count,
    finish,
    fold,
    let_next_start,
    wait_for_last,
    weigh,
)
from dsv4core.kernels.triton._hopper_decode import DYNAMIC, PAIRS, ROW, decode_rows, read_rows, slots_of

CHUNKS = gl.constexpr(gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0]))
NUMBERS = gl.constexpr(gl.BlockedLayout([4], [32], [4], [0]))


@gluon.jit
def _keep(keys, kept, values, keep, FIRST: gl.constexpr, HALF: gl.constexpr):
    """Half of 16 rows into shared memory, and into the workspace."""
    keys.slice(FIRST, 16).store(values)
    form: gl.constexpr = values.type.layout
    i = FIRST + gl.arange(0, 16, layout=gl.SliceLayout(1, form))
    j = gl.arange(0, 128, layout=gl.SliceLayout(0, form))
    gl.store(kept + i[:, None] * 256 + HALF * 128 + j[None, :], values, keep & (j < 128)[None, :])


@gluon.jit
def _score_half(queries, keys, s):
    fence_async_shared()
    s = warpgroup_mma(queries, keys.permute((1, 0)), s, is_async=True)
    return warpgroup_mma_wait(0, deps=[s])


@gluon.jit
def _find(lists, tile, own, t):
    """Slots of a tile's rows; they are read up to the list's width, and need not wait for its length."""
    i = gl.arange(0, 16, layout=ROW)
    found = ()
    for k in gl.static_range(4):
        found += (slots_of(lists, tile, own, t, i + 16 * k, True),)
    return found


@gluon.jit
def _left(lengths, tile, own):
    """Keys of a tile and behind it in its list; none or fewer where the list has ended."""
    length, extra_length = lengths
    mine = tile < own
    return gl.where(mine, length, extra_length) - gl.where(mine, tile, tile - own) * 64


@gluon.jit
def _read(found, tile, own, left, pages, rows: gl.constexpr):
    """The first `left` rows of a tile as they are kept, 16 at a time."""
    i = gl.arange(0, 16, layout=ROW)
    read = ()
    for k in gl.static_range(4):
        read += (read_rows(gl.where(i + 16 * k < left, found[k], -1), tile < own, pages, rows),)
    return read


@gluon.jit
def _weigh_tile(now, queries, keys, there, weights, stats, kept, tile, keep, factor):
    """Weights of a tile for 64 heads, and its rows, into the workspace of a token."""
    place = kept + tile.to(gl.int64) * 16384
    weights += tile.to(gl.int64) * 4096
    stats += tile.to(gl.int64) * 192
    pairs = keys._reinterpret(gl.int32, [64, 128], PAIRS)
    late = ()
    for k in gl.static_range(4):
        codes, tails, scales, live = now[k]
        there.slice(16 * k, 16).store(live.to(gl.int32))
        values = gl.reshape(decode_rows(codes, tails, scales), (16, 2, 128))
        low, high = gl.split(gl.permute(values, (0, 2, 1)))
        _keep(pairs, place, low, keep, 16 * k, 0)
        late += (high,)
    async_copy.wait_group(0)
    s = gl.zeros([64, 64], gl.float32, SCORES)
    s = _score_half(queries.slice(0, 256, dim=1), keys, s)
    for k in gl.static_range(4):
        _keep(pairs, place, late[k], keep, 16 * k, 1)
    s = _score_half(queries.slice(256, 256, dim=1), keys, s)
    live = there.load(gl.SliceLayout(0, SCORES))
    s = gl.where((live != 0)[None, :], s * factor, -float("inf"))
    w, peak, total, rounded = weigh(s)
    h = gl.arange(0, 64, layout=gl.SliceLayout(1, SCORES))
    m = gl.arange(0, 64, layout=gl.SliceLayout(0, SCORES))
    gl.store(weights + h[:, None] * 64 + m[None, :], w.to(gl.bfloat16))
    gl.store(stats + h, peak)
    gl.store(stats + 64 + h, total)
    gl.store(stats + 128 + h, rounded)


@gluon.jit(do_not_specialize=["tiles", "each", *DYNAMIC])
def weigh_hopper_kernel(
    q, cache, slots, lens, extra, extra_slots, extra_lens, weights, stats, kept, scale,
    parts, tiles, each, heads, limit, width, extra_limit, extra_width, q_stride, q_head_stride,
    stride, slot_stride, column_stride, len_stride,
    extra_stride, extra_slot_stride, extra_column_stride, extra_len_stride,
    rows: gl.constexpr, SEVERAL: gl.constexpr,
):  # fmt: skip
    """`each` tiles of keys for 64 heads of a token: their weights, and their rows for `use_kept_kernel`.

    SEVERAL: more than one, and rows of the next tile are on their way while one is weighed.
    """
    wait_for_last()
    let_next_start()  # which reads lengths at once
    pid = gl.program_id(0)
    runs = gl.cdiv(tiles, each)
    begin = pid % runs * each
    end = gl.minimum(begin + each, tiles)
    part = pid // runs
    t = (part // parts).to(gl.int64)
    queries = gl.allocate_shared_memory(gl.bfloat16, [64, 512], OPERAND)
    keys = gl.allocate_shared_memory(gl.bfloat16, [64, 256], OPERAND)  # half of the channels at a time
    there = gl.allocate_shared_memory(gl.int32, [64], LINE)
    copy_query(queries, q, part, parts, heads, q_stride, q_head_stride, True)
    own = gl.cdiv(width, 64)
    lists = (slots, width, slot_stride, column_stride, extra_slots, extra_width, extra_slot_stride,
             extra_column_stride)  # fmt: skip
    pages = (cache, limit, stride, extra, extra_limit, extra_stride)
    lengths = (gl.minimum(gl.load(lens + t * len_stride), width),
               gl.minimum(gl.load(extra_lens + t * extra_len_stride), extra_width))  # fmt: skip
    keep = part % parts == 0  # heads of a token share its rows
    kept = kept.to(gl.pointer_type(gl.int32)) + t * tiles * 16384
    weights += part.to(gl.int64) * tiles * 4096
    stats += part.to(gl.int64) * tiles * 192
    found = _find(lists, begin, own, t)
    if SEVERAL:
        after = _find(lists, begin + 1, own, t)
        now = _read(found, begin, own, _left(lengths, begin, own), pages, rows)
        for tile in range(begin, end):
            left = _left(lengths, tile, own)
            following = gl.where(tile + 1 < end, _left(lengths, tile + 1, own), 0)
            ahead = _read(after, tile + 1, own, following, pages, rows)
            after = _find(lists, tile + 2, own, t)
            if left > 0:
                _weigh_tile(now, queries, keys, there, weights, stats, kept, tile, keep, scale * LOG2E)
            now = ahead
    else:
        left = _left(lengths, begin, own)
        if left > 0:
            now = _read(found, begin, own, left, pages, rows)
            _weigh_tile(now, queries, keys, there, weights, stats, kept, begin, keep, scale * LOG2E)
    async_copy.wait_group(0)


class Kept(NamedTuple):
    """Tiles on their way from the first kernel to the second: weights, rows and numbers, and barriers.

    `ready` and `free`: a tile is there, has been used.
    """

    weights: Any
    keys: Any
    numbers: Any
    ready: Any
    free: Any


@gluon.jit
def _bring_kept(kept, given, stats, rows, lists, t, first):
    """Copies of a tile's weights, some channels of its rows, and its numbers, as places come free."""
    STAGES: gl.constexpr = kept.keys.shape[0]
    own, tiles = count(lists, t)
    skip = gl.cdiv(lists.width, 64) - own
    i = gl.arange(0, 64, layout=gl.SliceLayout(1, CHUNKS))[:, None]
    j = gl.arange(0, 64, layout=gl.SliceLayout(0, CHUNKS))[None, :]
    d = gl.arange(0, kept.keys.shape[2], layout=gl.SliceLayout(0, CHUNKS))[None, :]
    n = gl.arange(0, 256, layout=NUMBERS)
    wait_for_last()
    let_next_start()
    for tile in range(tiles):
        here = tile % STAGES
        place = gl.where(tile < own, tile, tile + skip).to(gl.int64)
        mbarrier.wait(kept.free.index(here), tile // STAGES % 2 ^ 1)
        async_copy.async_copy_global_to_shared(kept.weights.index(here), given + place * 4096 + i * 64 + j)
        async_copy.async_copy_global_to_shared(
            kept.keys.index(here), rows + place * 32768 + i * 512 + first + d
        )
        async_copy.async_copy_global_to_shared(
            kept.numbers.index(here), stats + place * 192 + n, mask=n < 192
        )
        async_copy.mbarrier_arrive(kept.ready.index(here), increment_count=False)


@gluon.jit
def _share_of(kept, tile, peak, total, rounded, LEFT: gl.constexpr):
    """A tile's weights for the maximum so far, what was before for it, and the running numbers."""
    STAGES: gl.constexpr = kept.keys.shape[0]
    here = tile % STAGES
    mbarrier.wait(kept.ready.index(here), tile // STAGES % 2)
    mine = kept.numbers.index(here)
    top = mine.slice(0, 64).load(peak.type.layout)
    added = mine.slice(64, 64).load(peak.type.layout)
    added_rounded = mine.slice(128, 64).load(peak.type.layout)
    factor, peak, total, rounded, past = fold(top, added, added_rounded, peak, total, rounded)
    share = gl.convert_layout(factor, gl.SliceLayout(1, LEFT))[:, None]
    w = (kept.weights.index(here).load(LEFT).to(gl.float32) * share).to(gl.bfloat16)
    return w, past, peak, total, rounded


@gluon.jit
def _fold_kept(kept, lists, sink, out, lse, t, first, heads, start, out_stride, out_head_stride):
    """Tiles in order; weights of the next one are made while the products of one run."""
    STAGES: gl.constexpr = kept.keys.shape[0]
    CHANNELS: gl.constexpr = kept.keys.shape[2]
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, CHANNELS, 16])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, SUMS, 2)
    HEAD: gl.constexpr = gl.SliceLayout(1, SUMS)
    _, tiles = count(lists, t)
    acc = gl.zeros([64, CHANNELS], gl.float32, SUMS)
    peak = gl.zeros([64], gl.float32, HEAD) + NEVER
    total = gl.zeros([64], gl.float32, HEAD)
    rounded = gl.zeros([64], gl.float32, HEAD)
    w = gl.zeros([64, 64], gl.bfloat16, LEFT)
    past = gl.zeros([64], gl.float32, HEAD)
    if tiles > 0:
        w, past, peak, total, rounded = _share_of(kept, 0, peak, total, rounded, LEFT)
    for tile in range(tiles):
        here = tile % STAGES
        fence_async_shared()
        going = warpgroup_mma(w, kept.keys.index(here), acc * past[:, None], is_async=True)
        held = w
        if tile + 1 < tiles:
            w, past, peak, total, rounded = _share_of(kept, tile + 1, peak, total, rounded, LEFT)
        acc, held = warpgroup_mma_wait(0, deps=[going, held])  # registers of weights are read until then
        mbarrier.arrive(kept.free.index(here), count=1)
    h = start + gl.arange(0, 64, layout=HEAD)
    share, natural = finish(peak, total, rounded, gl.load(sink + h, h < heads, other=0.0))
    if first == 0:
        gl.store(lse + t * heads + h, natural, h < heads)
    value = gl.where(share[:, None] == 0, 0.0, acc * share[:, None]).to(gl.bfloat16)
    d = first + gl.arange(0, CHANNELS, layout=gl.SliceLayout(0, SUMS))
    target = out + t * out_stride + h.to(gl.int64) * out_head_stride
    gl.store(target[:, None] + d[None, :], value, (h < heads)[:, None])


@gluon.jit(do_not_specialize=["parts", "tiles", "width", "extra_width", "lens", "extra_lens"])
def use_kept_kernel(
    given, stats, kept, lens, extra_lens, sink, out, lse, parts, tiles, heads, width, extra_width,
    out_stride, out_head_stride, len_stride, extra_len_stride, EXTRA: gl.constexpr, CHANNELS: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """`use_weights_kernel` for CHANNELS channels of 64 heads, with rows that the first kernel kept."""
    pid = gl.program_id(0)
    first = pid % (512 // CHANNELS) * CHANNELS
    part = pid // (512 // CHANNELS)
    t = (part // parts).to(gl.int64)
    given += part.to(gl.int64) * tiles * 4096
    stats += part.to(gl.int64) * tiles * 192
    kept += t * tiles * 32768
    ROWS: gl.constexpr = gl.NVMMASharedLayout(64 if CHANNELS == 32 else 128, 16, 2)
    shared = Kept(
        gl.allocate_shared_memory(gl.bfloat16, [STAGES, 64, 64], OPERAND),
        gl.allocate_shared_memory(gl.bfloat16, [STAGES, 64, CHANNELS], ROWS),
        gl.allocate_shared_memory(gl.float32, [STAGES, 256], LINE),
        gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout()),
        gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout()),
    )
    for i in gl.static_range(STAGES):
        mbarrier.init(shared.ready.index(i), count=128)  # every thread that copies
        mbarrier.init(shared.free.index(i), count=1)
    lists = Lists(lens, len_stride, width, extra_lens, extra_len_stride, extra_width, EXTRA)
    gl.warp_specialize(
        [
            (_fold_kept, (shared, lists, sink, out, lse, t, first, heads, part % parts * 64, out_stride,
                          out_head_stride)),
            (_bring_kept, (shared, given, stats, kept, lists, t, first)),
        ],
        [4], [56],
    )  # fmt: skip
