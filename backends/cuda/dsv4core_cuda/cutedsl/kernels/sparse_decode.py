"""Attention of a token over listed rows of pages: keys split over a cluster, folded in the cluster.

A block takes HEADS heads and the keys of one segment (TILES tiles of 128 keys of both lists, one behind the
other); the blocks of a cluster have the segments of a row. Rows become bf16 in shared memory once and are
keys and values there: scores are K Q^T (128 keys by HEADS), outputs V^T P^T (512 channels by HEADS), so that
few heads still fill the matrix units. Running maxima are whole powers of two, so a segment's share in the
row is exact whatever its maximum was.
"""

import cutlass
import cutlass.utils.hopper_helpers as hopper
from cutlass import BFloat16, Float32, Int32, Int64, cute
from cutlass.cute.nvgpu import warpgroup

from dsv4core_cuda.cutedsl.kernels._cluster import (
    copy_async,
    load_peer,
    load_shared,
    peer,
    store_peer,
    store_shared,
)
from dsv4core_cuda.cutedsl.kernels._fp8 import decode_four, pack_bf16
from dsv4core_cuda.cutedsl.kernels._math import ceil, exp2
from dsv4core_cuda.cutedsl.kernels._ptx import bits, load_words, store_words

KEYS = 128
THREADS = 256
NEVER = -1.0e30
LOG2E = 1.4426950408889634
LN2 = 0.6931471805599453


@cute.jit
def listed(
    n, t, cache, slots, lens, slot_stride, extra, extra_slots, extra_lens, extra_slot_stride, width,
    extra_width, stride, limit, extra_stride, extra_limit, ROWS: cutlass.Constexpr, EXTRA_ROWS: cutlass.Constexpr,
):  # fmt: skip
    """Addresses of row n of both lists and of its scales, and 1 if it is there."""
    row = cache
    scales = cache
    live = Int32(0)
    if n < width:
        length = load_word(lens + Int64(t) * 4)
        slot = load_word(slots + (Int64(t) * slot_stride + n) * 4)
        if (n < length) & (slot >= 0) & (slot < limit):
            page = cache + Int64(slot // ROWS) * stride
            row = page + (slot % ROWS) * 576
            scales = page + ROWS * 576 + (slot % ROWS) * 8
            live = Int32(1)
    else:
        if n < width + extra_width:
            m = n - width
            length = load_word(extra_lens + Int64(t) * 4)
            slot = load_word(extra_slots + (Int64(t) * extra_slot_stride + m) * 4)
            if (m < length) & (slot >= 0) & (slot < extra_limit):
                page = extra + Int64(slot // EXTRA_ROWS) * extra_stride
                row = page + (slot % EXTRA_ROWS) * 576
                scales = page + EXTRA_ROWS * 576 + (slot % EXTRA_ROWS) * 8
                live = Int32(1)
    return row, scales, live


@cute.jit
def load_word(address):
    """An i32 of global memory."""
    return cute.make_tensor(
        cute.make_ptr(Int32, address, cute.AddressSpace.gmem, assumed_align=4), cute.make_layout(1)
    )[0]


@cute.jit
def load_rows(k_base, row, scales, live, warp, lane):
    """The 16 rows of a warp into shared memory, as bf16; zeros where no row is.

    `row`, `scales`, `live` are those of row `lane` of the 16.
    """
    first, second = load_words(scales, 2)
    raw = []
    there = []
    low = []
    high = []
    for i in cutlass.range_constexpr(16):
        start = cute.arch.shuffle_sync(row, i)
        there.append(0 - cute.arch.shuffle_sync(live, i))
        # 28 lanes take the 448 codes, four the first half of the 64 rotated channels
        raw.append(load_words(start + lane * 16, 4))
        low.append(cute.arch.shuffle_sync(first, i))
        high.append(cute.arch.shuffle_sync(second, i))
    rest = []
    mine = []
    for j in cutlass.range_constexpr(2):
        i = j * 8 + lane // 4
        start = cute.arch.shuffle_sync(row, i)
        mine.append(0 - cute.arch.shuffle_sync(live, i))
        rest.append(load_words(start + (512 + lane % 4 * 16), 4))
    # Two blocks of 64 channels lie on the same banks: every other one stores its halves the other way round.
    swapped = (lane // 4) % 2
    for i in cutlass.range_constexpr(16):
        r = warp * 16 + i
        a, b, c, d = [w & there[i] for w in raw[i]]
        base = k_base + r * 128
        if lane < 28:
            word = low[i] if lane < 16 else high[i]
            byte = (word >> (lane // 4 % 4 * 8)) & 0xFF
            # 2^(byte - 127) in bf16, twice: exponents are the byte, but that of byte 0 is subnormal
            scale = byte << 7 if byte > 0 else Int32(0x40)
            scale = scale | (scale << 16)
            x = c if swapped == 1 else a
            y = d if swapped == 1 else b
            z = a if swapped == 1 else c
            w = b if swapped == 1 else d
            block = base + lane // 4 * 16384
            chunk = lane % 4 * 2
            here = chunk + swapped
            store_shared(block + ((here ^ (r % 8)) << 4), decode_four(x, scale) + decode_four(y, scale))
            here = chunk + 1 - swapped
            store_shared(block + ((here ^ (r % 8)) << 4), decode_four(z, scale) + decode_four(w, scale))
        else:
            store_shared(base + (7 * 16384 + (((lane - 28) ^ (r % 8)) << 4)), [a, b, c, d])
    for j in cutlass.range_constexpr(2):
        r = warp * 16 + j * 8 + lane // 4
        words = [w & mine[j] for w in rest[j]]
        store_shared(k_base + (7 * 16384 + r * 128 + (((4 + lane % 4) ^ (r % 8)) << 4)), words)


@cute.kernel
def kernel(
    q: Int64, cache: Int64, slots: Int64, lens: Int64, extra: Int64, extra_slots: Int64, extra_lens: Int64,
    sink: Int64, out: Int64, lse: Int64, scale: Float32,
    q_stride: Int64, q_head_stride: Int64, out_stride: Int64, out_head_stride: Int64,
    stride: Int64, extra_stride: Int64, slot_stride: Int64, extra_slot_stride: Int64,
    limit: Int32, extra_limit: Int32, width: Int32, extra_width: Int32, heads: Int32, tiles: Int32,
    ROWS: cutlass.Constexpr, EXTRA_ROWS: cutlass.Constexpr, HEADS: cutlass.Constexpr,
    BLOCKS: cutlass.Constexpr,
):  # fmt: skip
    """A block: HEADS heads of token blockIdx.z, `tiles` tiles of keys. Strides in elements, of pages in bytes."""
    thread = cute.arch.thread_idx()[0]
    rank, group, t = cute.arch.block_idx()
    warp = cute.arch.make_warp_uniform(thread // 32)
    lane = thread % 32

    K_BYTES: cutlass.Constexpr = KEYS * 1024
    smem = cutlass.utils.SmemAllocator()
    sk_ptr = smem.allocate_array(BFloat16, KEYS * 512, byte_alignment=1024)
    sq_ptr = smem.allocate_array(BFloat16, HEADS * 512, byte_alignment=1024)
    sp_ptr = smem.allocate_array(BFloat16, HEADS * KEYS, byte_alignment=1024)
    red_ptr = smem.allocate_array(Float32, 8 * HEADS, byte_alignment=16)
    ml_ptr = smem.allocate_array(Float32, BLOCKS * 2 * HEADS, byte_alignment=16)
    weight_ptr = smem.allocate_array(Float32, BLOCKS * HEADS, byte_alignment=16)
    atom = warpgroup.make_smem_layout_atom(warpgroup.SmemLayoutAtomKind.K_SW128, BFloat16)
    k_layout = cute.tile_to_shape(atom, (KEYS, 512), (0, 1))
    q_layout = cute.tile_to_shape(atom, (HEADS, 512), (0, 1))
    p_layout = cute.tile_to_shape(atom, (HEADS, KEYS), (0, 1))
    sk = cute.make_tensor(cute.recast_ptr(sk_ptr, k_layout.inner, BFloat16), k_layout.outer)
    sq = cute.make_tensor(cute.recast_ptr(sq_ptr, q_layout.inner, BFloat16), q_layout.outer)
    sp = cute.make_tensor(cute.recast_ptr(sp_ptr, p_layout.inner, BFloat16), p_layout.outer)
    sv = cute.composition(sk, cute.make_layout((512, KEYS), stride=(KEYS, 1)))
    k_base, q_base = sk_ptr.toint(), sq_ptr.toint()
    k_base, q_base = Int32(k_base), Int32(q_base)
    red, ml, weights = Int32(red_ptr.toint()), Int32(ml_ptr.toint()), Int32(weight_ptr.toint())

    cute.arch.cluster_arrive_relaxed()

    # queries
    q_from = q + (Int64(t) * q_stride + Int64(group * HEADS) * q_head_stride) * 2
    for i in cutlass.range_constexpr(HEADS * 64 // THREADS):
        c = thread + i * THREADS
        h = c // 64
        w = c % 64
        to = q_base + (w // 8) * (HEADS * 128) + h * 128 + (((w % 8) ^ (h % 8)) << 4)
        copy_async(to, q_from + (Int64(h) * q_head_stride + w * 8) * 2)
    cute.arch.cp_async_commit_group()

    k_major = warpgroup.OperandMajorMode.K
    mn_major = warpgroup.OperandMajorMode.MN
    score_mma = hopper.make_trivial_tiled_mma(
        BFloat16, BFloat16, k_major, k_major, Float32, (2, 1, 1), (64, HEADS)
    )
    value_mma = hopper.make_trivial_tiled_mma(
        BFloat16, BFloat16, mn_major, k_major, Float32, (2, 1, 1), (64, HEADS)
    )
    score_thread = score_mma.get_slice(thread)
    value_thread = value_mma.get_slice(thread)
    a_k = score_mma.make_fragment_A(score_thread.partition_A(sk))
    b_q = score_mma.make_fragment_B(score_thread.partition_B(sq))
    a_v = value_mma.make_fragment_A(value_thread.partition_A(sv))
    b_p = value_mma.make_fragment_B(value_thread.partition_B(sp))
    s = cute.make_rmem_tensor(score_mma.partition_shape_C((KEYS, HEADS)), Float32)
    o = cute.make_rmem_tensor(value_mma.partition_shape_C((512, HEADS)), Float32)
    o.fill(0.0)
    value_mma.set(warpgroup.Field.ACCUMULATE, True)

    COLUMNS: cutlass.Constexpr = HEADS // 4
    peak = cute.make_rmem_tensor(COLUMNS, Float32)
    total = cute.make_rmem_tensor(COLUMNS, Float32)
    peak.fill(NEVER)
    total.fill(0.0)
    factor = scale * LOG2E
    column = lane % 4 * 2
    key = warp * 16 + lane // 4

    for tile in cutlass.range(tiles, unroll=1):
        n = (rank * tiles + tile) * KEYS + warp * 16 + lane % 16
        row, scales, live = listed(
            n, t, cache, slots, lens, slot_stride, extra, extra_slots, extra_lens, extra_slot_stride, width,
            extra_width, stride, limit, extra_stride, extra_limit, ROWS, EXTRA_ROWS,
        )  # fmt: skip
        load_rows(k_base, row, scales, live, warp, lane)
        cute.arch.cp_async_wait_group(0)
        cute.arch.fence_view_async_shared()
        cute.arch.sync_threads()

        warpgroup.fence()
        for i in cutlass.range_constexpr(32):
            score_mma.set(warpgroup.Field.ACCUMULATE, i > 0)
            cute.gemm(score_mma, s, a_k[None, None, i], b_q[None, None, i], s)
        warpgroup.commit_group()
        here = cute.arch.shuffle_sync(live, lane // 4) == 1
        below = cute.arch.shuffle_sync(live, lane // 4 + 8) == 1
        warpgroup.wait_group(0)

        for j in cutlass.range_constexpr(COLUMNS):
            at = j // 2 * 4 + j % 2
            x = s[at] * factor if here else -Float32.inf
            y = s[at + 2] * factor if below else -Float32.inf
            s[at] = x
            s[at + 2] = y
            m = cute.arch.fmax(x, y)
            for step in cutlass.range_constexpr(3):
                m = cute.arch.fmax(m, cute.arch.shuffle_sync_bfly(m, 4 << step))
            if lane < 4:
                store_shared(red + (warp * HEADS + j // 2 * 8 + column + j % 2) * 4, [bits(m)])
        cute.arch.sync_threads()
        for j in cutlass.range_constexpr(COLUMNS // 2):
            high, low = peak[2 * j], peak[2 * j + 1]
            for w in cutlass.range_constexpr(8):
                pair = load_shared(red + (w * HEADS + j * 8 + column) * 4, 2)
                high = cute.arch.fmax(high, ceil(pair[0]))
                low = cute.arch.fmax(low, ceil(pair[1]))
            for a in cutlass.range_constexpr(2):
                new = high if a == 0 else low
                c = 2 * j + a
                at = j * 4 + a
                past = exp2(peak[c] - new)
                peak[c] = new
                x = exp2(s[at] - new)
                y = exp2(s[at + 2] - new)
                total[c] = total[c] * past + (x + y)
                sp[j * 8 + column + a, key] = x.to(BFloat16)
                sp[j * 8 + column + a, key + 8] = y.to(BFloat16)
                for i in cutlass.range_constexpr(4):
                    o[i * 2 * COLUMNS + at] = o[i * 2 * COLUMNS + at] * past
                    o[i * 2 * COLUMNS + at + 2] = o[i * 2 * COLUMNS + at + 2] * past
        cute.arch.fence_view_async_shared()
        cute.arch.sync_threads()

        warpgroup.fence()
        for i in cutlass.range_constexpr(KEYS // 16):
            cute.gemm(value_mma, o, a_v[None, None, i], b_p[None, None, i], o)
        warpgroup.commit_group()
        warpgroup.wait_group(0)
        cute.arch.sync_threads()

    cute.arch.cluster_wait()  # the others run: from here on their shared memory is there

    # sums of weights over the block's keys, lanes and then warps in order
    for j in cutlass.range_constexpr(COLUMNS):
        x = total[j]
        for step in cutlass.range_constexpr(3):
            x = x + cute.arch.shuffle_sync_bfly(x, 4 << step)
        if lane < 4:
            store_shared(red + (warp * HEADS + j // 2 * 8 + column + j % 2) * 4, [bits(x)])
            if warp == 0:
                for c in cutlass.range_constexpr(BLOCKS):
                    h = j // 2 * 8 + column + j % 2
                    store_peer(peer(ml + (rank * 2 * HEADS + h) * 4, c), peak[j])
    # the segment's output, head by head, over keys and queries that nobody needs any more
    HEAD: cutlass.Constexpr = 516
    channel = warp // 4 * 64 + warp % 4 * 16 + lane // 4
    for i in cutlass.range_constexpr(4):
        for j in cutlass.range_constexpr(COLUMNS):
            at = i * 2 * COLUMNS + j // 2 * 4 + j % 2
            to = k_base + ((j // 2 * 8 + column + j % 2) * HEAD + i * 128 + channel) * 4
            store_shared(to, [bits(o[at])])
            store_shared(to + 32, [bits(o[at + 2])])
    cute.arch.sync_threads()
    if thread < HEADS:
        x = load_shared(red + thread * 4, 1)[0]
        for w in cutlass.range_constexpr(1, 8):
            x = x + load_shared(red + (w * HEADS + thread) * 4, 1)[0]
        for c in cutlass.range_constexpr(BLOCKS):
            store_peer(peer(ml + ((rank * 2 + 1) * HEADS + thread) * 4, c), x)
    cute.arch.cluster_arrive()
    cute.arch.cluster_wait()

    if thread < HEADS:
        top = Float32(NEVER)
        for c in cutlass.range_constexpr(BLOCKS):
            top = cute.arch.fmax(top, load_shared(ml + (c * 2 * HEADS + thread) * 4, 1)[0])
        whole = Float32(0.0)
        parts = []
        for c in cutlass.range_constexpr(BLOCKS):
            part = exp2(load_shared(ml + (c * 2 * HEADS + thread) * 4, 1)[0] - top)
            parts.append(part)
            whole = whole + part * load_shared(ml + ((c * 2 + 1) * HEADS + thread) * 4, 1)[0]
        h = group * HEADS + thread
        sinks = cute.make_tensor(cute.make_ptr(Float32, sink, cute.AddressSpace.gmem, assumed_align=4), heads)
        share = Float32(0.0)
        natural = Float32.inf
        if whole > 0.0:
            share = 1.0 / (whole + exp2(sinks[h] * LOG2E - top))
            natural = (top + cute.math.log2(whole)) * LN2
        if rank == 0:
            store_words(lse + (Int64(t) * heads + h) * 4, [bits(natural)])
        for c in cutlass.range_constexpr(BLOCKS):
            store_shared(weights + (c * HEADS + thread) * 4, [bits(parts[c] * share)])
    cute.arch.sync_threads()
    UNITS: cutlass.Constexpr = HEADS * 128
    bases = [peer(k_base, c) for c in range(BLOCKS)]
    to_out = out + (Int64(t) * out_stride + Int64(group * HEADS) * out_head_stride) * 2
    for i in cutlass.range_constexpr((UNITS + THREADS * BLOCKS - 1) // (THREADS * BLOCKS)):
        u = thread + THREADS * (rank + BLOCKS * i)
        if u < UNITS:
            h = u // 128
            c4 = u % 128 * 4
            folded = [Float32(0.0)] * 4
            for c in cutlass.range_constexpr(BLOCKS):
                weight = load_shared(weights + (c * HEADS + h) * 4, 1)[0]
                values = load_peer(bases[c] + (h * HEAD + c4) * 4, 4)
                folded = [a + b * weight for a, b in zip(folded, values)]
            words = [pack_bf16(folded[0], folded[1]), pack_bf16(folded[2], folded[3])]
            store_words(to_out + (Int64(h) * out_head_stride + c4) * 2, words)
    cute.arch.cluster_arrive()
    cute.arch.cluster_wait()
