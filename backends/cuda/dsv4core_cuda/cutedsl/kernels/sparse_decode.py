"""Attention of a token over listed rows of pages: keys split over a cluster, folded in the cluster.

A block takes HEADS heads and a segment of a row's keys (both lists, one behind the other; a segment is
`tiles` tiles of 128 keys). Rows become bf16 in shared memory once and are keys and values there: scores are
K Q^T (128 keys by HEADS), outputs V^T P^T (512 channels by HEADS), so that few heads still fill the matrix
units. The bits of a row depend on neither HEADS nor the other rows.
"""

import cutlass
import cutlass.utils.hopper_helpers as hopper
from cutlass import BFloat16, Float32, Int32, Int64, cute
from cutlass.cute.nvgpu import warpgroup

from dsv4core_cuda.cutedsl.kernels._cluster import ceil, exp2, peer, write_peer
from dsv4core_cuda.cutedsl.kernels._fold import LOG2E, SUMS, Rows, Whole, add_blocks, read_f32, shares
from dsv4core_cuda.cutedsl.kernels._listed_rows import asked, located
from dsv4core_cuda.cutedsl.kernels._ptx import (
    bits,
    copies_commit,
    copies_wait,
    copy_ahead,
    from_bits,
    pair_bf16,
    store_words,
    wait_turn,
    write_shared,
)
from dsv4core_cuda.cutedsl.kernels._rows import fetch, spread
from dsv4core_cuda.cutedsl.kernels._turned import ANGLES, Turned, bring_angles

KEYS = 128
THREADS = 256
NEVER = -1.0e30


@cute.jit
def ask(q, head_stride, queries, thread, HEADS: cutlass.Constexpr):
    """Begin to copy the queries of a block to shared memory."""
    for i in cutlass.range_constexpr(HEADS * 64 // THREADS):
        c = thread + i * THREADS
        h = c // 64
        w = c % 64
        to = queries + (w // 8) * (HEADS * 128) + h * 128 + (((w % 8) ^ (h % 8)) << 4)
        copy_ahead(to, q + (Int64(h) * head_stride + w * 8) * 2, 16)
    copies_commit()


@cute.jit
def softmax(
    s, o, sp, peak, past, factor, here, below, red, sums, warp, lane, HEADS: cutlass.Constexpr
):  # fmt: skip
    """Weights of a tile's keys as bf16 to `sp`, from scores `s`; outputs `o` scaled to the new maxima.

    A thread has two keys (channels of `o`), eight apart, of each of HEADS / 4 heads; `here` and `below` say
    which are there. Running maxima are whole powers of two, so that what was before is scaled exactly. Sums
    over the keys of a warp go to `sums`, the factors of what was before to `past`.
    """
    COLUMNS: cutlass.Constexpr = HEADS // 4
    column = lane % 4 * 2
    key = warp * 16 + lane // 4
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
            write_shared(red + (warp * HEADS + j // 2 * 8 + column + j % 2) * 4, [bits(m)])
    cute.arch.sync_threads()
    for j in cutlass.range_constexpr(COLUMNS // 2):
        high, low = peak[2 * j], peak[2 * j + 1]
        for w in cutlass.range_constexpr(8):
            pair = read_f32(red + (w * HEADS + j * 8 + column) * 4, 2)
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
            word = pair_bf16(x, y)
            z = x + y
            kept = from_bits(word << 16) + from_bits(word & Int32(-0x10000))
            for step in cutlass.range_constexpr(3):
                z = z + cute.arch.shuffle_sync_bfly(z, 4 << step)
                kept = kept + cute.arch.shuffle_sync_bfly(kept, 4 << step)
            if lane < 4:
                at_sum = sums + (warp * HEADS + j * 8 + column + a) * 4
                write_shared(at_sum, [bits(kept)])
                write_shared(at_sum + 8 * HEADS * 4, [bits(z)])
            for i in cutlass.range_constexpr(4):
                o[i * 2 * COLUMNS + at] = o[i * 2 * COLUMNS + at] * past[c]
                o[i * 2 * COLUMNS + at + 2] = o[i * 2 * COLUMNS + at + 2] * past[c]


@cute.kernel
def kernel(
    q: Int64, cache: Int64, slots: Int64, lens: Int64, extra: Int64, extra_slots: Int64, extra_lens: Int64,
    sink: Int64, out: Int64, lse: Int64, scale: Float32,
    q_stride: Int64, q_head_stride: Int64, out_stride: Int64, out_head_stride: Int64,
    stride: Int64, extra_stride: Int64, slot_stride: Int64, extra_slot_stride: Int64,
    limit: Int32, extra_limit: Int32, width: Int32, extra_width: Int32, rows: Int32, extra_rows: Int32,
    heads: Int32, tiles: Int32, part: Int64, extra_part: Int64, shifts: Int32, HEADS: cutlass.Constexpr,
    BLOCKS: cutlass.Constexpr, FORMAT: cutlass.Constexpr = "",
):  # fmt: skip
    """A block: HEADS heads of token blockIdx.z, `tiles` tiles of keys.

    Strides in elements, of pages in bytes. With a FORMAT (`_turned.Turned`) outputs are turned back and lie
    one behind the other: `lse` is then where scales go, `out_stride` and `out_head_stride` are the addresses
    of positions and of cosines and sines.
    """
    thread = cute.arch.thread_idx()[0]
    rank, group, t = cute.arch.block_idx()
    warp = cute.arch.make_warp_uniform(thread // 32)
    lane = thread % 32

    smem = cutlass.utils.SmemAllocator()
    sk_ptr = smem.allocate_array(BFloat16, KEYS * 512, byte_alignment=1024)
    sq_ptr = smem.allocate_array(BFloat16, HEADS * 512, byte_alignment=1024)
    sp_ptr = smem.allocate_array(BFloat16, HEADS * KEYS, byte_alignment=1024)
    red_ptr = smem.allocate_array(Float32, 24 * HEADS, byte_alignment=16)
    ml_ptr = smem.allocate_array(Float32, BLOCKS * SUMS * HEADS, byte_alignment=16)
    weight_ptr = smem.allocate_array(Float32, (BLOCKS + 1) * HEADS, byte_alignment=16)
    angles = 0
    if cutlass.const_expr(FORMAT):
        angles = Int32(smem.allocate_array(Float32, ANGLES, byte_alignment=16).toint())
    atom = warpgroup.make_smem_layout_atom(warpgroup.SmemLayoutAtomKind.K_SW128, BFloat16)
    k_layout = cute.tile_to_shape(atom, (KEYS, 512), (0, 1))
    q_layout = cute.tile_to_shape(atom, (HEADS, 512), (0, 1))
    p_layout = cute.tile_to_shape(atom, (HEADS, KEYS), (0, 1))
    sk = cute.make_tensor(cute.recast_ptr(sk_ptr, k_layout.inner, BFloat16), k_layout.outer)
    sq = cute.make_tensor(cute.recast_ptr(sq_ptr, q_layout.inner, BFloat16), q_layout.outer)
    sp = cute.make_tensor(cute.recast_ptr(sp_ptr, p_layout.inner, BFloat16), p_layout.outer)
    sv = cute.composition(sk, cute.make_layout((512, KEYS), stride=(KEYS, 1)))
    keys, queries = Int32(sk_ptr.toint()), Int32(sq_ptr.toint())
    red, ml, weights = Int32(red_ptr.toint()), Int32(ml_ptr.toint()), Int32(weight_ptr.toint())

    main = (cache, stride, rows, part, limit, slots, slot_stride, lens, width)
    entries = (
        extra, extra_stride, extra_rows, extra_part, extra_limit, extra_slots, extra_slot_stride, extra_lens,
        extra_width,
    )  # fmt: skip
    sums = red + 8 * HEADS * 4
    cute.arch.cluster_arrive_relaxed()
    wait_turn()
    place = rank * tiles * KEYS + warp * 16 + lane % 16
    slot, length = asked(place, t, main, entries)
    if cutlass.const_expr(FORMAT):  # with the queries' copies, whose end is waited for
        bring_angles(angles, out_stride, out_head_stride, t, thread)

    k_major, mn_major = warpgroup.OperandMajorMode.K, warpgroup.OperandMajorMode.MN
    types, shape = (BFloat16, BFloat16), ((2, 1, 1), (64, HEADS))
    score_mma = hopper.make_trivial_tiled_mma(*types, k_major, k_major, Float32, *shape)
    value_mma = hopper.make_trivial_tiled_mma(*types, mn_major, k_major, Float32, *shape)
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
    rounded = cute.make_rmem_tensor(COLUMNS, Float32)
    exact = cute.make_rmem_tensor(COLUMNS, Float32)
    past = cute.make_rmem_tensor(COLUMNS, Float32)
    column = lane % 4 * 2
    o.fill(0.0)
    peak.fill(NEVER)
    rounded.fill(0.0)
    exact.fill(0.0)
    for tile in cutlass.range(tiles, unroll=1):
        n = place + tile * KEYS
        if tile > 0:
            slot, length = asked(n, t, main, entries)
        row, scales, live = located(n, slot, length, main, entries, shifts)
        eight, others = fetch(row, scales, 0, lane), fetch(row, scales, 8, lane)
        if tile == 0:  # rows wait for two reads, one behind the other, queries for one
            ask(q + (Int64(t) * q_stride + Int64(group * HEADS) * q_head_stride) * 2, q_head_stride,
                queries, thread, HEADS)  # fmt: skip
        spread(keys + warp * 2048, *eight, live, 0, lane, KEYS)
        spread(keys + warp * 2048 + 1024, *others, live, 8, lane, KEYS)
        copies_wait(0)
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

        softmax(s, o, sp, peak, past, scale * LOG2E, here, below, red, sums, warp, lane, HEADS)
        cute.arch.fence_view_async_shared()
        cute.arch.sync_threads()

        warpgroup.fence()
        for i in cutlass.range_constexpr(KEYS // 16):
            cute.gemm(value_mma, o, a_v[None, None, i], b_p[None, None, i], o)
        warpgroup.commit_group()
        for j in cutlass.range_constexpr(COLUMNS // 2):
            found = [Float32(0.0)] * 4
            for i in cutlass.range_constexpr(8):
                at_sum = sums + (i * HEADS + j * 8 + column) * 4
                more = read_f32(at_sum, 2) + read_f32(at_sum + 8 * HEADS * 4, 2)
                found = [a + b for a, b in zip(found, more, strict=True)]
            for a in cutlass.range_constexpr(2):
                rounded[2 * j + a] = rounded[2 * j + a] * past[2 * j + a] + found[a]
                exact[2 * j + a] = exact[2 * j + a] * past[2 * j + a] + found[2 + a]
        warpgroup.wait_group(0)
        cute.arch.sync_threads()

    cute.arch.cluster_wait()  # the others run: from here on their shared memory is there

    # every thread has sums over all the block's keys
    if thread < 4:
        for j in cutlass.range_constexpr(COLUMNS):
            h = j // 2 * 8 + column + j % 2
            for c in cutlass.range_constexpr(BLOCKS):
                to = peer(ml + (rank * SUMS * HEADS + h) * 4, c)
                write_peer(to, peak[j])
                write_peer(to + HEADS * 4, rounded[j])
                write_peer(to + HEADS * 8, exact[j])
    # outputs, head by head, over keys and queries that nobody needs any more
    channel = warp // 4 * 64 + warp % 4 * 16 + lane // 4
    for i in cutlass.range_constexpr(4):
        for j in cutlass.range_constexpr(COLUMNS):
            at = i * 2 * COLUMNS + j // 2 * 4 + j % 2
            to = keys + ((j // 2 * 8 + column + j % 2) * Whole.HEAD + i * 128 + channel) * 4
            write_shared(to, [bits(o[at])])
            write_shared(to + 32, [bits(o[at + 2])])
    cute.arch.cluster_arrive()
    cute.arch.cluster_wait()

    if thread < HEADS:
        natural = shares(ml, weights, sink + Int64(group * HEADS + thread) * 4, thread, HEADS, BLOCKS)
        if cutlass.const_expr(not FORMAT) and rank == 0:
            store_words(lse + (Int64(t) * heads + group * HEADS + thread) * 4, [bits(natural)])
    cute.arch.sync_threads()
    read = Whole(keys, BLOCKS)
    if cutlass.const_expr(FORMAT):
        to = Turned(read, angles, out, lse, Int64(t) * heads + group * HEADS, thread, FORMAT)
    else:
        to = Rows(out + (Int64(t) * out_stride + Int64(group * HEADS) * out_head_stride) * 2, out_head_stride)
    add_blocks(read, weights, to, thread, rank, HEADS, BLOCKS, THREADS)
    cute.arch.cluster_arrive_relaxed()  # what was read of the others has arrived: they may end
    cute.arch.cluster_wait()
