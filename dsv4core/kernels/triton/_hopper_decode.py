"""Decode on Hopper: rows of pages in fp8_ds_mla are decoded on their way to shared memory. See `_hopper`."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from dsv4core.kernels.triton._hopper import (
    LOG2E,
    Lists,
    count,
    follow,
    lead,
    let_next_start,
    share_memory,
    wait_for_last,
)

DYNAMIC = [
    "parts", "limit", "width", "extra_limit", "extra_width", "slots", "lens", "extra_slots", "extra_lens",
]  # fmt: skip
# Rows of 16 keys as groups of a scale, eighths and words: a thread has an eighth of every group of its row.
CODES = gl.constexpr(gl.BlockedLayout([1, 8, 1, 2], [4, 1, 8, 1], [4, 1, 1, 1], [3, 2, 1, 0]))
ROW = gl.constexpr(gl.SliceLayout(1, gl.SliceLayout(2, gl.SliceLayout(3, CODES))))
TAILS = gl.constexpr(gl.BlockedLayout([1, 4], [4, 8], [4, 1], [1, 0]))
PAIRS = gl.constexpr(gl.NVMMASharedLayout(128, 32, 2))


@gluon.jit
def slots_of(lists, tile, own, t, i, EXTRA: gl.constexpr):
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
def read_rows(slot, mine, pages, rows: gl.constexpr):
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
def decode_rows(codes, tails, scales):
    """bf16 values of rows, two a word. Shapes: what `read_rows` gave -> i32 [16, 256].

    The codes of NaN, which nobody writes, read as 480.
    """
    g = gl.arange(0, 8, layout=gl.SliceLayout(0, gl.SliceLayout(2, gl.SliceLayout(3, CODES))))
    g = g[None, :, None, None]
    byte = (scales[:, None, None, None] >> (g * 8).to(gl.int64)).to(gl.int32) & 255
    power = gl.minimum(gl.maximum(byte, 1), 254) * 0x800080  # twice in bf16
    codes, power = gl.broadcast(codes, power)
    # Codes moved into bf16's fields are values times 2^-120, the smallest of them subnormal. The hardware's
    # conversions are slower.
    first, second = gl.inline_asm_elementwise(
        """
        {
        .reg .b32 high, low, sign, up;
        shr.b32 high, $2, 4;
        shl.b32 low, $2, 4;
        and.b32 sign, $2, 0x80808080;
        lop3.b32 high, high, 0x07070707, sign, 0xEA;
        and.b32 low, low, 0xF0F0F0F0;
        mov.b32 up, 0x7B807B80;
        prmt.b32 sign, low, high, 0x5140;
        prmt.b32 high, low, high, 0x7362;
        mul.rn.bf16x2 sign, sign, up;
        mul.rn.bf16x2 high, high, up;
        mul.rn.bf16x2 $0, sign, $3;
        mul.rn.bf16x2 $1, high, $3;
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
def _rows_ahead(source, tile, own, t, i, pages, rows: gl.constexpr, EXTRA: gl.constexpr):
    """Rows of a tile, 16 at a time, and slots of the next."""
    read = ()
    found = ()
    for k in gl.static_range(4):
        slot = slots_of(source, tile, own, t, i + 16 * k, EXTRA)
        read += (read_rows(slot, tile < own, pages, rows),)
        found += (slots_of(source, tile + 1, own, t, i + 16 * k, EXTRA),)
    return read, found


@gluon.jit
def _bring_pages(shared, lists, pages, slots, extra_slots, work, parts, slot_stride, column_stride,
                 extra_slot_stride, extra_column_stride, rows: gl.constexpr):  # fmt: skip
    """Rows of pages, decoded; those of the next tile are on their way meanwhile."""
    pairs = shared.keys._reinterpret(gl.int32, [2, 64, 256], PAIRS)
    i = gl.arange(0, 16, layout=ROW)
    n = 0
    for pid in range(gl.program_id(0), work, gl.num_programs(0)):
        t = (pid // parts).to(gl.int64)
        own, tiles = count(lists, t)
        length = gl.minimum(gl.load(lists.lens + t * lists.len_stride), lists.width)
        extra_length = length
        if lists.EXTRA:
            extra_length = gl.minimum(
                gl.load(lists.extra_lens + t * lists.extra_len_stride), lists.extra_width
            )
        source = (slots, length, slot_stride, column_stride, extra_slots, extra_length, extra_slot_stride,
                  extra_column_stride)  # fmt: skip
        now, after = _rows_ahead(source, 0, own, t, i, pages, rows, lists.EXTRA)
        for tile in range(tiles):
            here = n % 2
            mbarrier.wait(shared.free.index(here), n // 2 % 2 ^ 1)
            read = ()
            found = ()
            for k in gl.static_range(4):
                codes, tails, scales, live = now[k]
                pairs.index(here).slice(16 * k, 16).store(decode_rows(codes, tails, scales))
                shared.there.index(here).slice(16 * k, 16).store(live.to(gl.int32))
                read += (read_rows(after[k], tile + 1 < own, pages, rows),)
                found += (slots_of(source, tile + 2, own, t, i + 16 * k, lists.EXTRA),)
            now, after = read, found
            # Those that use the tile fence what they have waited for: a fence here would wait for the loads.
            mbarrier.arrive(shared.ready.index(here), count=1)
            n += 1


@gluon.jit(do_not_specialize=["work", *DYNAMIC])
def decode_hopper_kernel(
    q, cache, slots, lens, extra, extra_slots, extra_lens, sink, out, lse, scale,
    work, parts, heads, limit, width, extra_limit, extra_width, q_stride, q_head_stride, out_stride,
    out_head_stride, stride, slot_stride, column_stride, len_stride,
    extra_stride, extra_slot_stride, extra_column_stride, extra_len_stride,
    rows: gl.constexpr, EXTRA: gl.constexpr,
):  # fmt: skip
    """`sparse_attention_kernel` over pages in fp8_ds_mla for `work` pairs of a token and 64 heads."""
    wait_for_last()
    let_next_start()
    shared = share_memory(1)
    lists = Lists(lens, len_stride, width, extra_lens, extra_len_stride, extra_width, EXTRA)
    gl.warp_specialize(
        [
            (lead, (shared, lists, q, sink, out, lse, scale * LOG2E, work, parts, heads, q_stride,
                     q_head_stride, out_stride, out_head_stride)),
            (follow, (shared, lists, out, work, parts, heads, out_stride, out_head_stride)),
            (_bring_pages, (shared, lists, (cache, limit, stride, extra, extra_limit, extra_stride), slots,
                            extra_slots, work, parts, slot_stride, column_stride, extra_slot_stride,
                            extra_column_stride, rows)),
        ],
        [4, 4], [160, 144],
    )  # fmt: skip
