"""Attention of a token over listed rows of pages, 64 heads a block: decoding beside multiplying.

A block takes 64 heads and a segment of a row's keys in tiles of 64. Four groups of warps: one multiplies
queries and keys, makes weights and the first quarter of the outputs, one the other outputs, two decode the
next tile's rows. Segments are folded in the cluster.
"""

import cutlass
import cutlass.utils.hopper_helpers as hopper
from cutlass import BFloat16, Float32, Int32, Int64, cute
from cutlass.cute.nvgpu import warpgroup

from dsv4core_cuda.cutedsl.kernels._cluster import ceil, exp2, own_block, peer, write_peer
from dsv4core_cuda.cutedsl.kernels._fold import LOG2E, SUMS, Packed, Rows, add_blocks, read_f32, shares
from dsv4core_cuda.cutedsl.kernels._listed_rows import listed
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
from dsv4core_cuda.cutedsl.kernels._rows import announce, fetch, spread
from dsv4core_cuda.cutedsl.kernels._turned import ANGLES, Turned, bring_angles

HEADS = 64
KEYS = 64
STAGES = 2
AHEAD = 4
"""Tiles whose rows are looked up together."""
THREADS = 512
NEVER = -1.0e30
FULL, EMPTY, WEIGHTS, QUERIES, OWN = 1, 3, 5, 7, 8
"""Named barriers; the first three have one for each stage."""
TILE = KEYS * 1024
"""Bytes of a stage."""


@cute.jit
def meet(barrier, threads: cutlass.Constexpr):
    """Wait at a named barrier."""
    cute.arch.barrier(barrier_id=barrier, number_of_threads=threads)


@cute.jit
def pass_by(barrier, threads: cutlass.Constexpr):
    """Be counted at a named barrier."""
    cute.arch.barrier_arrive(barrier_id=barrier, number_of_threads=threads)


@cute.jit
def weigh(s, peak, past, rounded, exact, factor, masks, weights, warp, lane):
    """Weights of a tile's keys as bf16 to shared memory, from scores `s`; running maxima and sums go on.

    A thread has 16 keys of two heads, eight apart. Maxima are whole powers of two, so that what was before is
    scaled exactly.
    """
    highest = [-Float32.inf, -Float32.inf]
    for j in cutlass.range_constexpr(8):
        add = read_f32(masks + (j * 8 + lane % 4 * 2) * 4, 2)
        for r in cutlass.range_constexpr(2):
            for c in cutlass.range_constexpr(2):
                at = j * 4 + r * 2 + c
                x = s[at] * factor + add[c]
                s[at] = x
                highest[r] = cute.arch.fmax(highest[r], x)
    for r in cutlass.range_constexpr(2):
        m = highest[r]
        for step in cutlass.range_constexpr(2):
            m = cute.arch.fmax(m, cute.arch.shuffle_sync_bfly(m, 1 << step))
        new = cute.arch.fmax(peak[r], ceil(m))
        past[r] = exp2(peak[r] - new)
        peak[r] = new
        row = warp * 16 + lane // 4 + r * 8
        kept, true = Float32(0.0), Float32(0.0)
        for j in cutlass.range_constexpr(8):
            x = exp2(s[j * 4 + r * 2] - new)
            y = exp2(s[j * 4 + r * 2 + 1] - new)
            word = pair_bf16(x, y)
            true = true + (x + y)
            kept = kept + (from_bits(word << 16) + from_bits(word & Int32(-0x10000)))
            write_shared(weights + row * 128 + ((j ^ (lane // 4)) << 4) + lane % 4 * 4, [word])
        rounded[r] = rounded[r] * past[r] + kept
        exact[r] = exact[r] * past[r] + true


@cute.jit
def scale_outputs(o, past, BLOCKS_N: cutlass.Constexpr):
    """Outputs times what running maxima make of them; mostly nothing is to be done."""
    if cute.arch.vote_any_sync((past[0] != 1.0) | (past[1] != 1.0)):
        for i in cutlass.range_constexpr(BLOCKS_N * 32):
            o[i * 2] = o[i * 2] * past[i % 2]
            o[i * 2 + 1] = o[i * 2 + 1] * past[i % 2]


@cute.jit
def put_outputs(o, outputs, first, warp, lane, BLOCKS_N: cutlass.Constexpr):
    """A group's outputs, 128 channels from `first` on for each of BLOCKS_N, head by head to shared memory."""
    to = Packed(outputs, 0, HEADS)
    for n in cutlass.range_constexpr(BLOCKS_N):
        for j in cutlass.range_constexpr(8):
            for r in cutlass.range_constexpr(2):
                at = n * 64 + j * 8 + r * 2
                head = warp * 16 + lane // 4 + r * 8
                unit = (first + n * 128) // 4 + j * 4 + lane % 4
                to.put(head, unit, o[at], o[at + 1], o[at + 4], o[at + 5])


@cute.jit
def finish(
    outputs, ml, weights, sink, out, lse, thread, out_stride, out_head_stride, heads, angles,
    BLOCKS: cutlass.Constexpr, FORMAT: cutlass.Constexpr,
):  # fmt: skip
    """Fold the cluster's blocks and write outputs.

    Which block this is, is asked again: nobody keeps it in a register until then.
    """
    rank, group, t = own_block()
    first_head = group * HEADS
    if cutlass.const_expr(not FORMAT):
        out = out + (Int64(t) * out_stride + Int64(first_head) * out_head_stride) * 2
        lse = lse + (Int64(t) * heads + first_head) * 4
    cute.arch.cluster_arrive()
    cute.arch.cluster_wait()
    if thread < HEADS:
        natural = shares(ml, weights, sink + Int64(first_head + thread) * 4, thread, HEADS, BLOCKS)
        if cutlass.const_expr(not FORMAT) and rank == 0:
            store_words(lse + Int64(thread) * 4, [bits(natural)])
    cute.arch.sync_threads()
    read = Packed(outputs, BLOCKS, HEADS)
    if cutlass.const_expr(FORMAT):
        to = Turned(read, angles, out, lse, Int64(t) * heads + first_head, thread, FORMAT)
    else:
        to = Rows(out, out_head_stride)
    add_blocks(read, weights, to, thread, rank, HEADS, BLOCKS, THREADS)
    cute.arch.cluster_arrive_relaxed()  # what was read of the others has arrived: they may end
    cute.arch.cluster_wait()


@cute.kernel
def kernel(
    q: Int64, cache: Int64, slots: Int64, lens: Int64, extra: Int64, extra_slots: Int64, extra_lens: Int64,
    sink: Int64, out: Int64, lse: Int64, scale: Float32,
    q_stride: Int64, q_head_stride: Int64, out_stride: Int64, out_head_stride: Int64,
    stride: Int64, extra_stride: Int64, slot_stride: Int64, extra_slot_stride: Int64,
    limit: Int32, extra_limit: Int32, width: Int32, extra_width: Int32, rows: Int32, extra_rows: Int32,
    heads: Int32, tiles: Int32, part: Int64, extra_part: Int64, shifts: Int32, BLOCKS: cutlass.Constexpr,
    FORMAT: cutlass.Constexpr = "",
):  # fmt: skip
    """A block: 64 heads of token blockIdx.z, up to `tiles` tiles of keys.

    Strides in elements, of pages in bytes. With a FORMAT (`_turned.Turned`) outputs are turned back and lie
    one behind the other: `lse` is then where scales go, `out_stride` and `out_head_stride` are the addresses
    of positions and of cosines and sines.
    """
    thread = cute.arch.thread_idx()[0]
    rank, group, t = cute.arch.block_idx()
    warp = cute.arch.make_warp_uniform(thread // 32)
    lane = thread % 32
    role = warp // 4

    smem = cutlass.utils.SmemAllocator()
    sk_ptr = smem.allocate_array(BFloat16, STAGES * KEYS * 512, byte_alignment=1024)
    sq_ptr = smem.allocate_array(BFloat16, HEADS * 512, byte_alignment=1024)
    sp_ptr = smem.allocate_array(BFloat16, STAGES * HEADS * KEYS, byte_alignment=1024)
    past_ptr = smem.allocate_array(Float32, STAGES * HEADS, byte_alignment=16)
    mask_ptr = smem.allocate_array(Float32, STAGES * KEYS, byte_alignment=16)
    ml_ptr = smem.allocate_array(Float32, BLOCKS * SUMS * HEADS, byte_alignment=16)
    share_ptr = smem.allocate_array(Float32, (BLOCKS + 1) * HEADS, byte_alignment=16)
    angles = 0
    if cutlass.const_expr(FORMAT):
        angles = Int32(smem.allocate_array(Float32, ANGLES, byte_alignment=16).toint())
    atom = warpgroup.make_smem_layout_atom(warpgroup.SmemLayoutAtomKind.K_SW128, BFloat16)
    k_layout = cute.tile_to_shape(atom, (KEYS, 512, STAGES), (0, 1, 2))
    q_layout = cute.tile_to_shape(atom, (HEADS, 512), (0, 1))
    p_layout = cute.tile_to_shape(atom, (HEADS, KEYS, STAGES), (0, 1, 2))
    sk = cute.make_tensor(cute.recast_ptr(sk_ptr, k_layout.inner, BFloat16), k_layout.outer)
    sq = cute.make_tensor(cute.recast_ptr(sq_ptr, q_layout.inner, BFloat16), q_layout.outer)
    sp = cute.make_tensor(cute.recast_ptr(sp_ptr, p_layout.inner, BFloat16), p_layout.outer)
    sv = cute.composition(sk, cute.make_layout((512, KEYS, STAGES), stride=(KEYS, 1, KEYS * 512)))
    keys, queries = Int32(sk_ptr.toint()), Int32(sq_ptr.toint())
    weights, masks = Int32(sp_ptr.toint()), Int32(mask_ptr.toint())
    pasts, ml, share = Int32(past_ptr.toint()), Int32(ml_ptr.toint()), Int32(share_ptr.toint())

    cute.arch.cluster_arrive_relaxed()
    whole = (width + extra_width + KEYS - 1) // KEYS
    first = rank * tiles
    n = cutlass.min(tiles, whole - first)
    main = (cache, stride, rows, part, limit, slots, slot_stride, lens, width)
    entries = (
        extra, extra_stride, extra_rows, extra_part, extra_limit, extra_slots, extra_slot_stride, extra_lens,
        extra_width,
    )  # fmt: skip

    k_major, mn_major = warpgroup.OperandMajorMode.K, warpgroup.OperandMajorMode.MN
    types = (BFloat16, BFloat16)
    score_mma = hopper.make_trivial_tiled_mma(*types, k_major, k_major, Float32, (1, 1, 1), (64, KEYS))
    value_mma = hopper.make_trivial_tiled_mma(*types, k_major, mn_major, Float32, (1, 1, 1), (64, 128))
    score_thread = score_mma.get_slice(thread % 128)
    value_thread = value_mma.get_slice(thread % 128)
    a_q = score_mma.make_fragment_A(score_thread.partition_A(sq))
    b_k = score_mma.make_fragment_B(score_thread.partition_B(sk))
    a_p = value_mma.make_fragment_A(value_thread.partition_A(sp))
    shape_o = value_mma.partition_shape_C((HEADS, 128))
    b_v = [
        value_mma.make_fragment_B(
            value_thread.partition_B(cute.local_tile(sv, (128, KEYS, STAGES), (c, 0, 0)))
        )
        for c in range(4)
    ]
    value_mma.set(warpgroup.Field.ACCUMULATE, True)

    wait_turn()
    if role < 2:
        q_from = q + (Int64(t) * q_stride + Int64(group * HEADS) * q_head_stride) * 2
        for i in cutlass.range_constexpr(HEADS * 64 // 256):
            c = thread + i * 256
            h = c // 64
            w = c % 64
            to = queries + (w // 8) * (HEADS * 128) + h * 128 + (((w % 8) ^ (h % 8)) << 4)
            copy_ahead(to, q_from + (Int64(h) * q_head_stride + w * 8) * 2, 16)
        copies_commit()
        copies_wait(0)
        cute.arch.fence_view_async_shared()
        meet(QUERIES, 256)

    if role == 0:
        cute.arch.setmaxregister_increase(128)
        s = cute.make_rmem_tensor(score_mma.partition_shape_C((HEADS, KEYS)), Float32)
        o = cute.make_rmem_tensor(shape_o, Float32)
        peak = cute.make_rmem_tensor(2, Float32)
        past = cute.make_rmem_tensor(2, Float32)
        rounded = cute.make_rmem_tensor(2, Float32)
        exact = cute.make_rmem_tensor(2, Float32)
        o.fill(0.0)
        peak.fill(NEVER)
        rounded.fill(0.0)
        exact.fill(0.0)
        for i in cutlass.range(n, unroll=1):
            stage = i % STAGES
            meet(FULL + stage, 384)
            warpgroup.fence()
            for k in cutlass.range_constexpr(32):
                score_mma.set(warpgroup.Field.ACCUMULATE, k > 0)
                cute.gemm(score_mma, s, a_q[None, None, k], b_k[None, None, k, stage], s)
            warpgroup.commit_group()
            warpgroup.wait_group(0)
            weigh(
                s, peak, past, rounded, exact, scale * LOG2E, masks + stage * (KEYS * 4),
                weights + stage * (HEADS * KEYS * 2), warp, lane,
            )  # fmt: skip
            if lane % 4 == 0:
                to_past = pasts + (stage * HEADS + warp * 16 + lane // 4) * 4
                write_shared(to_past, [bits(past[0])])
                write_shared(to_past + 32, [bits(past[1])])
            cute.arch.fence_view_async_shared()
            pass_by(WEIGHTS + stage, 256)
            meet(OWN, 128)
            scale_outputs(o, past, 1)
            warpgroup.fence()
            for k in cutlass.range_constexpr(KEYS // 16):
                cute.gemm(value_mma, o, a_p[None, None, k, stage], b_v[0][None, None, k, stage], o)
            warpgroup.commit_group()
            warpgroup.wait_group(0)
            if i + STAGES < n:
                pass_by(EMPTY + stage, 512)
        meet(QUERIES, 256)  # nobody reads keys and queries any more: outputs go there
        put_outputs(o, keys, 0, warp, lane, 1)
        cute.arch.cluster_wait()  # the others run: from here on their shared memory is there
        for r in cutlass.range_constexpr(2):
            for step in cutlass.range_constexpr(2):
                rounded[r] = rounded[r] + cute.arch.shuffle_sync_bfly(rounded[r], 1 << step)
                exact[r] = exact[r] + cute.arch.shuffle_sync_bfly(exact[r], 1 << step)
            if lane % 4 == 0:
                at = ml + (rank * SUMS * HEADS + warp * 16 + lane // 4 + r * 8) * 4
                for c in cutlass.range_constexpr(BLOCKS):
                    to = peer(at, c)
                    write_peer(to, peak[r])
                    write_peer(to + HEADS * 4, rounded[r])
                    write_peer(to + HEADS * 8, exact[r])
        finish(
            keys, ml, share, sink, out, lse, thread, out_stride, out_head_stride, heads, angles, BLOCKS,
            FORMAT,
        )  # fmt: skip
    elif role == 1:
        cute.arch.setmaxregister_increase(224)
        o = cute.make_rmem_tensor(value_mma.partition_shape_C((HEADS, 384)), Float32)
        parts = [cute.make_tensor(o.iterator + c * 64, cute.make_layout(shape_o)) for c in range(3)]
        past = cute.make_rmem_tensor(2, Float32)
        o.fill(0.0)
        if cutlass.const_expr(FORMAT):  # these wait for weights, longest of all
            bring_angles(angles, out_stride, out_head_stride, t, thread - 128)
            copies_commit()
        for i in cutlass.range(n, unroll=1):
            stage = i % STAGES
            meet(WEIGHTS + stage, 256)
            from_past = pasts + (stage * HEADS + (warp - 4) * 16 + lane // 4) * 4
            past[0] = read_f32(from_past, 1)[0]
            past[1] = read_f32(from_past + 32, 1)[0]
            scale_outputs(o, past, 3)
            warpgroup.fence()
            for k in cutlass.range_constexpr(KEYS // 16):
                for j in cutlass.range_constexpr(3):
                    cute.gemm(
                        value_mma, parts[j], a_p[None, None, k, stage], b_v[j + 1][None, None, k, stage],
                        parts[j],
                    )  # fmt: skip
            warpgroup.commit_group()
            warpgroup.wait_group(0)
            if i + STAGES < n:
                pass_by(EMPTY + stage, 512)
        if cutlass.const_expr(FORMAT):
            copies_wait(0)
        meet(QUERIES, 256)
        put_outputs(o, keys, 128, warp - 4, lane, 3)
        cute.arch.cluster_wait()
        finish(
            keys, ml, share, sink, out, lse, thread, out_stride, out_head_stride, heads, angles, BLOCKS,
            FORMAT,
        )  # fmt: skip
    else:
        cute.arch.setmaxregister_decrease(80)
        # A lane finds one row of four tiles, so that a warp has addresses of all four at once.
        mine = (warp - 8) * 8
        place = first * KEYS + lane // 8 * KEYS + mine + lane % 8
        row, scales, live = listed(place, t, main, entries, shifts)
        announce(row, scales, lane)
        next_row, next_scales, next_live = row, scales, live
        for i in cutlass.range(n, unroll=1):
            stage = i % STAGES
            base = i % AHEAD * 8
            if (i > 0) & (base == 0):
                row, scales, live = next_row, next_scales, next_live
            raw, rotated, pair = fetch(row, scales, base, lane)
            if i >= STAGES:
                meet(EMPTY + stage, 512)
            spread(keys + stage * TILE + mine * 128, raw, rotated, pair, live, base, lane, KEYS)
            there = cute.arch.shuffle_sync(live, base + lane % 8)
            if lane < 8:
                mask = Float32(0.0) if there == 1 else -Float32.inf
                write_shared(masks + (stage * KEYS + mine + lane) * 4, [bits(mask)])
            cute.arch.fence_view_async_shared()
            pass_by(FULL + stage, 384)
            if (i % AHEAD == AHEAD // 2) & (i + AHEAD // 2 < n):
                next_row, next_scales, next_live = listed(
                    place + (i + AHEAD // 2) * KEYS, t, main, entries, shifts
                )  # fmt: skip
                announce(next_row, next_scales, lane)
        cute.arch.cluster_wait()
        finish(
            keys, ml, share, sink, out, lse, thread, out_stride, out_head_stride, heads, angles, BLOCKS,
            FORMAT,
        )  # fmt: skip
