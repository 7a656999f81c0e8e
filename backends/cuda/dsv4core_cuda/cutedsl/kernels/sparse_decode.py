"""Attention of a token over listed rows of pages: keys split over a cluster, folded in the cluster.

A block takes HEADS heads and a segment of a row's keys (both lists, one behind the other; a segment is
`tiles` tiles of 64 keys). Rows become bf16 in shared memory once and are keys and values there: scores are
K Q^T (64 keys by HEADS), outputs V^T P^T (512 channels by HEADS), so that few heads still fill the matrix
units. Two blocks share a processor: one fetches and decodes while the other multiplies. The bits of a row
depend on neither HEADS nor the other rows.
"""

import cutlass
import cutlass.utils.hopper_helpers as hopper
from cutlass import BFloat16, Float32, Int32, Int64, cute
from cutlass.cute.nvgpu import warpgroup

from dsv4core_cuda.cutedsl.kernels._cluster import ceil, exp2, peer, read_peer, write_peer
from dsv4core_cuda.cutedsl.kernels._listed_rows import (
    exchanged,
    listed_slot,
    load_rows,
    row_place,
    store_rows,
)
from dsv4core_cuda.cutedsl.kernels._ptx import (
    bits,
    copies_commit,
    copies_wait,
    copy_ahead,
    from_bits,
    load_i32,
    pair_bf16,
    read_shared,
    store_words,
    write_shared,
)

KEYS = 64
THREADS = 256
HEAD = 516
"""f32 from a head's outputs to the next one's in shared memory: a warp's stores meet no bank twice."""
NEVER = -1.0e30
LOG2E = 1.4426950408889634
LN2 = 0.6931471805599453


def read_f32(address, n):
    """n (1, 2 or 4) f32 from shared memory."""
    return [from_bits(x) for x in read_shared(address, n)]


def query_piece(i, HEADS):
    """The head of 16-byte piece i of the queries, and its place in shared memory."""
    head, piece = i // 64, i % 64
    return head, piece // 8 * (HEADS * 128) + head * 128 + (((piece % 8) ^ (head % 8)) << 4)


@cute.jit
def softmax(
    s, sp, factor, above, below, red, sums, factors, old, new, warp, lane, HEADS: cutlass.Constexpr
):  # fmt: skip
    """Weights of a tile's keys, by the four warps that have their scores `s`.

    A thread has two keys, eight apart, of each of HEADS / 4 heads. Weights go to `sp` as bf16, relative to a
    running maximum that is a whole power of two (from `old` to `new`); their sums over a warp's keys to
    `sums`, the factors of what was before to `factors`.
    """
    column = lane % 4 * 2
    key = warp * 16 + lane // 4
    for j in cutlass.range_constexpr(HEADS // 4):
        at = j // 2 * 4 + j % 2
        s[at] = s[at] * factor + above
        s[at + 2] = s[at + 2] * factor + below
        m = cute.arch.fmax(s[at], s[at + 2])
        for step in cutlass.range_constexpr(3):
            m = cute.arch.fmax(m, cute.arch.shuffle_sync_bfly(m, 4 << step))
        if lane < 4:
            write_shared(red + (warp * HEADS + j // 2 * 8 + column + j % 2) * 4, [bits(m)])
    cute.arch.barrier(barrier_id=1, number_of_threads=128)
    for j in cutlass.range_constexpr(HEADS // 8):
        before = read_f32(old + (j * 8 + column) * 4, 2)
        highs = [read_f32(red + (w * HEADS + j * 8 + column) * 4, 2) for w in range(4)]
        for a in cutlass.range_constexpr(2):
            h = j * 8 + column + a
            at = j * 4 + a
            high = highs[0][a]
            for w in cutlass.range_constexpr(1, 4):
                high = cute.arch.fmax(high, highs[w][a])
            high = cute.arch.fmax(before[a], ceil(high))
            x = exp2(s[at] - high)
            y = exp2(s[at + 2] - high)
            sp[h, key] = x.to(BFloat16)
            sp[h, key + 8] = y.to(BFloat16)
            z = x + y
            for step in cutlass.range_constexpr(3):
                z = z + cute.arch.shuffle_sync_bfly(z, 4 << step)
            if lane < 4:
                write_shared(sums + (warp * HEADS + h) * 4, [bits(z)])
                if warp == 0:
                    write_shared(new + h * 4, [bits(high)])
                    write_shared(factors + h * 4, [bits(exp2(before[a] - high))])


@cute.jit
def shares(ml, weights, sink, head, HEADS: cutlass.Constexpr, BLOCKS: cutlass.Constexpr):
    """What a head's maxima and sums of the cluster's blocks make of their outputs: factors into `weights`.

    A power of two for every block, then the share of their sum. -> the natural log of the sum without sink.
    """
    peaks = [read_f32(ml + (c * 2 * HEADS + head) * 4, 1)[0] for c in range(BLOCKS)]
    top = peaks[0]
    for c in cutlass.range_constexpr(1, BLOCKS):
        top = cute.arch.fmax(top, peaks[c])
    whole = Float32(0.0)
    for c in cutlass.range_constexpr(BLOCKS):
        part = exp2(peaks[c] - top)
        write_shared(weights + (c * HEADS + head) * 4, [bits(part)])
        whole = whole + part * read_f32(ml + ((c * 2 + 1) * HEADS + head) * 4, 1)[0]
    share, natural = Float32(0.0), Float32.inf
    if whole > 0.0:
        share = 1.0 / (whole + exp2(from_bits(load_i32(sink)) * LOG2E - top))
        natural = (top + cute.math.log2(whole)) * LN2
    write_shared(weights + (BLOCKS * HEADS + head) * 4, [bits(share)])
    return natural


@cute.jit
def add_blocks(
    outputs, weights, to, head_stride, thread, rank, HEADS: cutlass.Constexpr, BLOCKS: cutlass.Constexpr
):  # fmt: skip
    """Add what the blocks of the cluster have, in their order, for this one's part of the channels."""
    UNITS: cutlass.Constexpr = HEADS * 128
    bases = [peer(outputs, c) for c in range(BLOCKS)]
    for i in cutlass.range_constexpr((UNITS + THREADS * BLOCKS - 1) // (THREADS * BLOCKS)):
        unit = thread + THREADS * (rank + BLOCKS * i)
        if unit < UNITS:
            head, channel = unit // 128, unit % 128 * 4
            values = [read_peer(bases[c] + (head * HEAD + channel) * 4) for c in range(BLOCKS)]
            x = [Float32(0.0)] * 4
            for c in cutlass.range_constexpr(BLOCKS):
                weight = read_f32(weights + (c * HEADS + head) * 4, 1)[0]
                x = [a + b * weight for a, b in zip(x, values[c], strict=True)]
            share = read_f32(weights + (BLOCKS * HEADS + head) * 4, 1)[0]
            a, b, c, d = [y * share for y in x]
            # channels in the order that `exchanged` and `decoded` gave them
            store_words(to + (Int64(head) * head_stride + channel) * 2, [pair_bf16(a, c), pair_bf16(b, d)])


@cute.kernel
def kernel(
    q: Int64, cache: Int64, slots: Int64, lens: Int64, extra: Int64, extra_slots: Int64, extra_lens: Int64,
    sink: Int64, out: Int64, lse: Int64, nothing: Int64, scale: Float32,
    q_stride: Int64, q_head_stride: Int64, out_stride: Int64, out_head_stride: Int64,
    stride: Int64, extra_stride: Int64, slot_stride: Int64, extra_slot_stride: Int64,
    limit: Int32, extra_limit: Int32, width: Int32, extra_width: Int32, heads: Int32, tiles: Int32,
    ROWS: cutlass.Constexpr, EXTRA_ROWS: cutlass.Constexpr, HEADS: cutlass.Constexpr,
    BLOCKS: cutlass.Constexpr, PARTS: cutlass.Constexpr,
):  # fmt: skip
    """A block: HEADS heads of token blockIdx.z, `tiles` tiles of keys.

    Strides in elements, of pages in bytes. `nothing`: 576 zeros. PARTS: in how many parts rows are
    fetched; in one part, those of the next tile are on their way while this one is used.
    """
    thread = cute.arch.thread_idx()[0]
    rank, group, t = cute.arch.block_idx()
    warp = cute.arch.make_warp_uniform(thread // 32)
    lane = thread % 32

    smem = cutlass.utils.SmemAllocator()
    sk_ptr = smem.allocate_array(BFloat16, KEYS * 512, byte_alignment=1024)
    sq_ptr = smem.allocate_array(BFloat16, HEADS * 512, byte_alignment=1024)
    sp_ptr = smem.allocate_array(BFloat16, HEADS * KEYS, byte_alignment=1024)
    red_ptr = smem.allocate_array(Float32, 11 * HEADS + KEYS, byte_alignment=16)
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
    keys, queries = Int32(sk_ptr.toint()), Int32(sq_ptr.toint())
    red, ml, weights = Int32(red_ptr.toint()), Int32(ml_ptr.toint()), Int32(weight_ptr.toint())
    sums, factors, tops, masks = [red + i * HEADS * 4 for i in (4, 8, 9, 11)]
    cute.arch.cluster_arrive_relaxed()

    q_from = q + (Int64(t) * q_stride + Int64(group * HEADS) * q_head_stride + thread % 64 * 8) * 2
    for i in cutlass.range_constexpr(HEADS * 64 // THREADS):
        head, place = query_piece(thread + i * THREADS, HEADS)
        copy_ahead(queries + place, q_from + Int64(head) * q_head_stride * 2, 16)
    copies_commit()

    k_major, mn_major = warpgroup.OperandMajorMode.K, warpgroup.OperandMajorMode.MN
    types = (BFloat16, BFloat16)
    score_mma = hopper.make_trivial_tiled_mma(*types, k_major, k_major, Float32, (1, 1, 1), (64, HEADS))
    value_mma = hopper.make_trivial_tiled_mma(*types, mn_major, k_major, Float32, (2, 1, 1), (64, HEADS))
    score_thread = score_mma.get_slice(thread % 128)
    value_thread = value_mma.get_slice(thread)
    a_k = score_mma.make_fragment_A(score_thread.partition_A(sk))
    b_q = score_mma.make_fragment_B(score_thread.partition_B(sq))
    a_v = value_mma.make_fragment_A(value_thread.partition_A(sv))
    b_p = value_mma.make_fragment_B(value_thread.partition_B(sp))
    s = cute.make_rmem_tensor(score_mma.partition_shape_C((KEYS, HEADS)), Float32)
    o = cute.make_rmem_tensor(value_mma.partition_shape_C((512, HEADS)), Float32)
    value_mma.set(warpgroup.Field.ACCUMULATE, True)

    # A thread has two channels, eight apart, of each of HEADS / 4 heads; the first HEADS threads have sums.
    column = lane % 4 * 2
    total = Float32(0.0)
    o.fill(0.0)
    if thread < HEADS:
        write_shared(tops + thread * 4, [bits(Float32(NEVER))])
    length, extra_length = load_i32(lens + Int64(t) * 4), load_i32(extra_lens + Int64(t) * 4)
    listed = (
        width, length, slots + Int64(t) * slot_stride * 4,
        extra_width, extra_length, extra_slots + Int64(t) * extra_slot_stride * 4,
    )  # fmt: skip
    pages = (nothing, cache, stride, limit, extra, extra_stride, extra_limit, ROWS, EXTRA_ROWS)
    raw = cute.make_rmem_tensor(37, Int32)
    COUNT: cutlass.Constexpr = 8 // PARTS
    n = rank * tiles * KEYS + warp * 8 + lane % 8
    slot, following = listed_slot(n, *listed), listed_slot(n + KEYS, *listed)
    row, scales, live = row_place(slot, n < width, *pages)
    if cutlass.const_expr(PARTS == 1):
        load_rows(raw, row, scales, lane, 0, 8)
    for tile in cutlass.range(tiles, unroll=1):
        if cutlass.const_expr(PARTS > 1):
            row, scales, live = row_place(slot, n < width, *pages)
        if lane < 8:
            write_shared(masks + (warp * 8 + lane) * 4, [bits(Float32(0.0) if live == 1 else -Float32.inf)])
        for part in cutlass.range_constexpr(PARTS):
            if cutlass.const_expr(PARTS > 1):
                load_rows(raw, row, scales, lane, part * COUNT, COUNT)
            store_rows(keys, raw, warp, lane, part * COUNT, COUNT)
        n += KEYS
        slot = following
        following = listed_slot(n + KEYS, *listed)
        if cutlass.const_expr(PARTS == 1):  # noqa: SIM102 - one is decided here, the other on the device
            if tile + 1 < tiles:
                row, scales, live = row_place(slot, n < width, *pages)
                load_rows(raw, row, scales, lane, 0, 8)
        if tile == 0:
            copies_wait(0)
            for i in cutlass.range_constexpr(HEADS * 64 // THREADS):
                _, place = query_piece(thread + i * THREADS, HEADS)
                write_shared(queries + place, exchanged(read_shared(queries + place, 4)))
        cute.arch.fence_view_async_shared()
        cute.arch.sync_threads()

        if warp < 4:
            warpgroup.fence()
            for i in cutlass.range_constexpr(32):
                score_mma.set(warpgroup.Field.ACCUMULATE, i > 0)
                cute.gemm(score_mma, s, a_k[None, None, i], b_q[None, None, i], s)
            warpgroup.commit_group()
            mask = masks + (warp * 16 + lane // 4) * 4
            above, below = read_f32(mask, 1)[0], read_f32(mask + 32, 1)[0]
            warpgroup.wait_group(0)
            old, new = tops + tile % 2 * (HEADS * 4), tops + (tile + 1) % 2 * (HEADS * 4)
            softmax(
                s, sp, scale * LOG2E, above, below, red, sums, factors, old, new, warp, lane, HEADS
            )  # fmt: skip
        cute.arch.fence_view_async_shared()
        cute.arch.sync_threads()

        for j in cutlass.range_constexpr(HEADS // 8):
            rest = read_f32(factors + (j * 8 + column) * 4, 2)
            for a in cutlass.range_constexpr(2):
                for i in cutlass.range_constexpr(4):
                    at = i * (HEADS // 2) + j * 4 + a
                    o[at] = o[at] * rest[a]
                    o[at + 2] = o[at + 2] * rest[a]
        warpgroup.fence()
        for i in cutlass.range_constexpr(KEYS // 16):
            cute.gemm(value_mma, o, a_v[None, None, i], b_p[None, None, i], o)
        warpgroup.commit_group()
        if thread < HEADS:
            total = total * read_f32(factors + thread * 4, 1)[0]
            for w in cutlass.range_constexpr(4):
                total = total + read_f32(sums + (w * HEADS + thread) * 4, 1)[0]
        warpgroup.wait_group(0)
        cute.arch.sync_threads()

    cute.arch.cluster_wait()  # the others run: from here on their shared memory is there

    if thread < HEADS:
        top = read_f32(tops + (tiles % 2 * HEADS + thread) * 4, 1)[0]
        for c in cutlass.range_constexpr(BLOCKS):
            write_peer(peer(ml + (rank * 2 * HEADS + thread) * 4, c), top)
            write_peer(peer(ml + ((rank * 2 + 1) * HEADS + thread) * 4, c), total)
    # outputs, head by head, over keys and queries that nobody needs any more
    channel = warp // 4 * 64 + warp % 4 * 16 + lane // 4
    for i in cutlass.range_constexpr(4):
        for j in cutlass.range_constexpr(HEADS // 4):
            at = i * (HEADS // 2) + j // 2 * 4 + j % 2
            to = keys + ((j // 2 * 8 + column + j % 2) * HEAD + i * 128 + channel) * 4
            write_shared(to, [bits(o[at])])
            write_shared(to + 32, [bits(o[at + 2])])
    cute.arch.cluster_arrive()
    cute.arch.cluster_wait()

    if thread < HEADS:
        natural = shares(ml, weights, sink + (group * HEADS + thread) * 4, thread, HEADS, BLOCKS)
        if rank == 0:
            store_words(lse + (Int64(t) * heads + group * HEADS + thread) * 4, [bits(natural)])
    cute.arch.sync_threads()
    to = out + (Int64(t) * out_stride + Int64(group * HEADS) * out_head_stride) * 2
    add_blocks(keys, weights, to, out_head_stride, thread, rank, HEADS, BLOCKS)
    cute.arch.cluster_arrive()
    cute.arch.cluster_wait()
