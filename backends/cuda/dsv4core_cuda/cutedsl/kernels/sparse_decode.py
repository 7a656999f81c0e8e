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
def load_rows(k_base, row, scales, live, warp, lane, FIRST: cutlass.Constexpr, COUNT: cutlass.Constexpr):
    """Rows FIRST .. FIRST + COUNT - 1 of a warp's 16 into shared memory, as bf16; zeros where no row is.

    `row`, `scales`, `live` are those of row `lane` of the 16.
    """
    raw, there, rest, mine = [], [], [], []
    for i in cutlass.range_constexpr(COUNT):
        start = cute.arch.shuffle_sync(row, FIRST + i)
        # 28 lanes take the 448 codes, four the first half of the 64 rotated channels
        raw.append(load_words(start + lane * 16, 4))
    for j in cutlass.range_constexpr(COUNT // 8):
        start = cute.arch.shuffle_sync(row, FIRST + j * 8 + lane // 4)
        rest.append(load_words(start + (512 + lane % 4 * 16), 4))
    first, second = load_words(scales, 2)
    # Two blocks of 64 channels lie on the same banks: every other one stores its halves the other way round.
    swapped = (lane // 4) % 2
    for i in cutlass.range_constexpr(COUNT):
        r = warp * 16 + FIRST + i
        there = 0 - cute.arch.shuffle_sync(live, FIRST + i)
        low, high = cute.arch.shuffle_sync(first, FIRST + i), cute.arch.shuffle_sync(second, FIRST + i)
        a, b, c, d = [w & there for w in raw[i]]
        base = k_base + r * 128
        if lane < 28:
            word = low if lane < 16 else high
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
    for j in cutlass.range_constexpr(COUNT // 8):
        i = FIRST + j * 8 + lane // 4
        r = warp * 16 + i
        mask = 0 - cute.arch.shuffle_sync(live, i)
        words = [w & mask for w in rest[j]]
        store_shared(k_base + (7 * 16384 + r * 128 + (((4 + lane % 4) ^ (r % 8)) << 4)), words)


@cute.kernel
def kernel(
    q: Int64, cache: Int64, slots: Int64, lens: Int64, extra: Int64, extra_slots: Int64, extra_lens: Int64,
    sink: Int64, out: Int64, lse: Int64, scale: Float32,
    q_stride: Int64, q_head_stride: Int64, out_stride: Int64, out_head_stride: Int64,
    stride: Int64, extra_stride: Int64, slot_stride: Int64, extra_slot_stride: Int64,
    limit: Int32, extra_limit: Int32, width: Int32, extra_width: Int32, heads: Int32, tiles: Int32,
    segments: Int32,
    ROWS: cutlass.Constexpr, EXTRA_ROWS: cutlass.Constexpr, HEADS: cutlass.Constexpr,
    BLOCKS: cutlass.Constexpr, SEVERAL: cutlass.Constexpr, PARTS: cutlass.Constexpr,
):  # fmt: skip
    """A block: HEADS heads of token blockIdx.z, SEVERAL segments of `tiles` tiles of keys.

    Strides in elements, of pages in bytes. PARTS: in how many parts rows are fetched, which costs registers.
    """
    thread = cute.arch.thread_idx()[0]
    rank, group, t = cute.arch.block_idx()
    warp = cute.arch.make_warp_uniform(thread // 32)
    lane = thread % 32

    K_BYTES: cutlass.Constexpr = KEYS * 1024
    smem = cutlass.utils.SmemAllocator()
    sk_ptr = smem.allocate_array(BFloat16, KEYS * 512, byte_alignment=1024)
    sq_ptr = smem.allocate_array(BFloat16, HEADS * 512, byte_alignment=1024)
    sp_ptr = smem.allocate_array(BFloat16, HEADS * KEYS, byte_alignment=1024)
    red_ptr = smem.allocate_array(Float32, 16 * HEADS, byte_alignment=16)
    ml_ptr = smem.allocate_array(Float32, BLOCKS * 2 * HEADS, byte_alignment=16)
    weight_ptr = smem.allocate_array(Float32, (BLOCKS + 1) * HEADS, byte_alignment=16)
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

    sums = red + 8 * HEADS * 4

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
    value_mma.set(warpgroup.Field.ACCUMULATE, True)

    COLUMNS: cutlass.Constexpr = HEADS // 4
    peak = cute.make_rmem_tensor(COLUMNS, Float32)
    total = cute.make_rmem_tensor(COLUMNS, Float32)
    past = cute.make_rmem_tensor(COLUMNS, Float32)
    factor = scale * LOG2E
    column = lane % 4 * 2
    key = warp * 16 + lane // 4

    whole_o = cute.make_rmem_tensor(o.layout, Float32)
    whole_peak = cute.make_rmem_tensor(COLUMNS, Float32)
    whole_total = cute.make_rmem_tensor(COLUMNS, Float32)
    if cutlass.const_expr(SEVERAL > 1):
        whole_o.fill(0.0)
        whole_peak.fill(NEVER)
        whole_total.fill(0.0)
    count = min(Int32(SEVERAL), segments - rank * SEVERAL) if cutlass.const_expr(SEVERAL > 1) else Int32(1)
    for turn in cutlass.range(count, unroll=1):
        segment = rank * SEVERAL + turn
        o.fill(0.0)
        peak.fill(NEVER)
        total.fill(0.0)
        for tile in cutlass.range(tiles, unroll=1):
            n = (segment * tiles + tile) * KEYS + warp * 16 + lane % 16
            row, scales, live = listed(
                n, t, cache, slots, lens, slot_stride, extra, extra_slots, extra_lens, extra_slot_stride, width,
                extra_width, stride, limit, extra_stride, extra_limit, ROWS, EXTRA_ROWS,
            )  # fmt: skip
            for part in cutlass.range_constexpr(PARTS):
                load_rows(k_base, row, scales, live, warp, lane, part * 16 // PARTS, 16 // PARTS)
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
                    past[c] = exp2(peak[c] - new)
                    peak[c] = new
                    x = exp2(s[at] - new)
                    y = exp2(s[at + 2] - new)
                    sp[j * 8 + column + a, key] = x.to(BFloat16)
                    sp[j * 8 + column + a, key + 8] = y.to(BFloat16)
                    z = x + y
                    for step in cutlass.range_constexpr(3):
                        z = z + cute.arch.shuffle_sync_bfly(z, 4 << step)
                    if lane < 4:
                        store_shared(sums + (warp * HEADS + j * 8 + column + a) * 4, [bits(z)])
                    for i in cutlass.range_constexpr(4):
                        o[i * 2 * COLUMNS + at] = o[i * 2 * COLUMNS + at] * past[c]
                        o[i * 2 * COLUMNS + at + 2] = o[i * 2 * COLUMNS + at + 2] * past[c]
            cute.arch.fence_view_async_shared()
            cute.arch.sync_threads()

            warpgroup.fence()
            for i in cutlass.range_constexpr(KEYS // 16):
                cute.gemm(value_mma, o, a_v[None, None, i], b_p[None, None, i], o)
            warpgroup.commit_group()
            for j in cutlass.range_constexpr(COLUMNS // 2):
                even, odd = Float32(0.0), Float32(0.0)
                for i in cutlass.range_constexpr(8):
                    found = load_shared(sums + (i * HEADS + j * 8 + column) * 4, 2)
                    even, odd = even + found[0], odd + found[1]
                total[2 * j] = total[2 * j] * past[2 * j] + even
                total[2 * j + 1] = total[2 * j + 1] * past[2 * j + 1] + odd
            warpgroup.wait_group(0)
            cute.arch.sync_threads()


        if cutlass.const_expr(SEVERAL > 1):
            for j in cutlass.range_constexpr(COLUMNS):
                top_now = cute.arch.fmax(whole_peak[j], peak[j])
                before, now = exp2(whole_peak[j] - top_now), exp2(peak[j] - top_now)
                whole_peak[j] = top_now
                whole_total[j] = whole_total[j] * before + total[j] * now
                for i in cutlass.range_constexpr(4):
                    for b in cutlass.range_constexpr(2):
                        at = i * 2 * COLUMNS + j // 2 * 4 + j % 2 + b * 2
                        whole_o[at] = whole_o[at] * before + o[at] * now
        else:
            for j in cutlass.range_constexpr(COLUMNS):
                whole_peak[j] = peak[j]
                whole_total[j] = total[j]
            for i in cutlass.range_constexpr(8 * COLUMNS):
                whole_o[i] = o[i]

    cute.arch.cluster_wait()  # the others run: from here on their shared memory is there

    # every thread has sums over all the block's keys
    if thread < 4:
        for j in cutlass.range_constexpr(COLUMNS):
            h = j // 2 * 8 + column + j % 2
            for c in cutlass.range_constexpr(BLOCKS):
                store_peer(peer(ml + (rank * 2 * HEADS + h) * 4, c), whole_peak[j])
                store_peer(peer(ml + ((rank * 2 + 1) * HEADS + h) * 4, c), whole_total[j])
    # the segment's output, head by head, over keys and queries that nobody needs any more
    HEAD: cutlass.Constexpr = 516
    channel = warp // 4 * 64 + warp % 4 * 16 + lane // 4
    for i in cutlass.range_constexpr(4):
        for j in cutlass.range_constexpr(COLUMNS):
            at = i * 2 * COLUMNS + j // 2 * 4 + j % 2
            to = k_base + ((j // 2 * 8 + column + j % 2) * HEAD + i * 128 + channel) * 4
            store_shared(to, [bits(whole_o[at])])
            store_shared(to + 32, [bits(whole_o[at + 2])])
    cute.arch.cluster_arrive()
    cute.arch.cluster_wait()

    # blocks are folded as segments are: each half in order, then the halves
    HALF: cutlass.Constexpr = (BLOCKS + 1) // 2
    if thread < HEADS:
        peaks = [load_shared(ml + (c * 2 * HEADS + thread) * 4, 1)[0] for c in range(BLOCKS)]
        top = peaks[0]
        for c in cutlass.range_constexpr(1, BLOCKS):
            top = cute.arch.fmax(top, peaks[c])
        halves = [Float32(0.0), Float32(0.0)]
        for c in cutlass.range_constexpr(BLOCKS):
            part = exp2(peaks[c] - top)
            store_shared(weights + (c * HEADS + thread) * 4, [bits(part)])
            found = load_shared(ml + ((c * 2 + 1) * HEADS + thread) * 4, 1)[0]
            halves[c // HALF] = halves[c // HALF] + part * found
        sum_of_row = halves[0] + halves[1]
        head = group * HEADS + thread
        sinks = cute.make_tensor(cute.make_ptr(Float32, sink, cute.AddressSpace.gmem, assumed_align=4), heads)
        share = Float32(0.0)
        natural = Float32.inf
        if sum_of_row > 0.0:
            share = 1.0 / (sum_of_row + exp2(sinks[head] * LOG2E - top))
            natural = (top + cute.math.log2(sum_of_row)) * LN2
        if rank == 0:
            store_words(lse + (Int64(t) * heads + head) * 4, [bits(natural)])
        store_shared(weights + (BLOCKS * HEADS + thread) * 4, [bits(share)])
    cute.arch.sync_threads()
    UNITS: cutlass.Constexpr = HEADS * 128
    bases = [peer(k_base, c) for c in range(BLOCKS)]
    to_out = out + (Int64(t) * out_stride + Int64(group * HEADS) * out_head_stride) * 2
    for i in cutlass.range_constexpr((UNITS + THREADS * BLOCKS - 1) // (THREADS * BLOCKS)):
        u = thread + THREADS * (rank + BLOCKS * i)
        if u < UNITS:
            at_head = u // 128
            c4 = u % 128 * 4
            values = [load_peer(bases[c] + (at_head * HEAD + c4) * 4, 4) for c in range(BLOCKS)]
            folded = [[Float32(0.0)] * 4, [Float32(0.0)] * 4]
            for c in cutlass.range_constexpr(BLOCKS):
                weight = load_shared(weights + (c * HEADS + at_head) * 4, 1)[0]
                folded[c // HALF] = [a + b * weight for a, b in zip(folded[c // HALF], values[c])]
            portion = load_shared(weights + (BLOCKS * HEADS + at_head) * 4, 1)[0]
            y = [(a + b) * portion for a, b in zip(*folded)]
            words = [pack_bf16(y[0], y[1]), pack_bf16(y[2], y[3])]
            store_words(to_out + (Int64(at_head) * out_head_stride + c4) * 2, words)
    cute.arch.cluster_arrive()
    cute.arch.cluster_wait()
