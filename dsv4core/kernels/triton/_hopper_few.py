"""Decode of few tokens on Hopper: `_attention_split`, but rows are decoded once, for both kernels."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
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
    weigh,
)
from dsv4core.kernels.triton._hopper_decode import DYNAMIC, PAIRS, ROW, decode_rows, read_rows, slots_of

STAGES = gl.constexpr(8)  # tiles in shared memory at a time
LEFT = gl.constexpr(gl.DotOperandLayout(0, SCORES, 2))
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


@gluon.jit(do_not_specialize=["tiles", *DYNAMIC])
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
    queries = gl.allocate_shared_memory(gl.bfloat16, [64, 512], OPERAND)
    keys = gl.allocate_shared_memory(gl.bfloat16, [64, 256], OPERAND)  # half of the channels at a time
    there = gl.allocate_shared_memory(gl.int32, [64], LINE)
    copy_query(queries, q, part, parts, heads, q_stride, q_head_stride, True)
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
    found = ()
    for k in gl.static_range(4):
        found += (slots_of(lists, tile, own, t, i + 16 * k, True),)
    if begin < length:
        pairs = keys._reinterpret(gl.int32, [64, 128], PAIRS)
        keep = part % parts == 0  # heads of a token share its rows
        place = kept.to(gl.pointer_type(gl.int32)) + (t * tiles + tile) * 16384
        read = ()
        for k in gl.static_range(4):
            slot = gl.where(begin + i + 16 * k < length, found[k], -1)
            read += (read_rows(slot, mine, pages, rows),)
        late = ()
        for k in gl.static_range(4):
            codes, tails, scales, live = read[k]
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
        s = gl.where((live != 0)[None, :], s * (scale * LOG2E), -float("inf"))
        w, peak, total, rounded = weigh(s)
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
def _copy_kept(weights, keys, numbers, stage, given, kept, stats, tile, own, skip, first, there):
    """Start copying a tile's weights, 64 channels of its rows, and its numbers."""
    place = gl.where(tile < own, tile, tile + skip).to(gl.int64)
    i = gl.arange(0, 64, layout=gl.SliceLayout(1, CHUNKS))[:, None]
    j = gl.arange(0, 64, layout=gl.SliceLayout(0, CHUNKS))[None, :]
    mask = (i < 64) & there
    async_copy.async_copy_global_to_shared(weights.index(stage), given + place * 4096 + i * 64 + j, mask=mask)
    async_copy.async_copy_global_to_shared(
        keys.index(stage), kept + place * 32768 + i * 512 + first + j, mask=mask
    )
    n = gl.arange(0, 256, layout=NUMBERS)
    async_copy.async_copy_global_to_shared(
        numbers.index(stage), stats + place * 192 + n, mask=(n < 192) & there
    )
    async_copy.commit_group()


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
    own, all_tiles = count(
        Lists(lens, len_stride, width, extra_lens, extra_len_stride, extra_width, EXTRA), t
    )
    skip = gl.cdiv(width, 64) - own
    acc = gl.zeros([64, 64], gl.float32, SCORES)
    peak = gl.zeros([64], gl.float32, gl.SliceLayout(1, SCORES)) + NEVER
    total = gl.zeros([64], gl.float32, gl.SliceLayout(1, SCORES))
    rounded = gl.zeros([64], gl.float32, gl.SliceLayout(1, SCORES))
    gl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1)
    for tile in gl.static_range(STAGES - 1):
        _copy_kept(weights, keys, numbers, tile, given, kept, stats, tile, own, skip, first, tile < all_tiles)
    for tile in range(all_tiles):
        ahead = tile + STAGES - 1
        async_copy.wait_group(STAGES - 2)
        here = tile % STAGES
        mine = numbers.index(here)
        top = mine.slice(0, 64).load(gl.SliceLayout(1, SCORES))
        added = mine.slice(64, 64).load(gl.SliceLayout(1, SCORES))
        added_rounded = mine.slice(128, 64).load(gl.SliceLayout(1, SCORES))
        _copy_kept(
            weights, keys, numbers, ahead % STAGES, given, kept, stats, ahead, own, skip, first,
            ahead < all_tiles,
        )  # fmt: skip
        factor, peak, total, rounded, past = fold(top, added, added_rounded, peak, total, rounded)
        w = weights.index(here).load(LEFT)
        share = gl.convert_layout(factor, gl.SliceLayout(1, LEFT))[:, None]
        w = (w.to(gl.float32) * share).to(gl.bfloat16)
        fence_async_shared()
        acc = acc * past[:, None]
        acc = warpgroup_mma(w, keys.index(here), acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=[acc])
    async_copy.wait_group(0)
    h = part % parts * 64 + gl.arange(0, 64, layout=gl.SliceLayout(1, SCORES))
    share, natural = finish(peak, total, rounded, gl.load(sink + h, h < heads, other=0.0))
    if first == 0:
        gl.store(lse + t * heads + h, natural, h < heads)
    value = gl.where(share[:, None] == 0, 0.0, acc * share[:, None]).to(gl.bfloat16)
    d = first + gl.arange(0, 64, layout=gl.SliceLayout(0, SCORES))
    target = out + t * out_stride + h.to(gl.int64) * out_head_stride
    gl.store(target[:, None] + d[None, :], value, (h < heads)[:, None])
