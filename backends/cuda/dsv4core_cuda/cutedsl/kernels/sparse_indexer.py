"""Scores of index entries and the k best of them: pages stream through shared memory, scores never leave it.

Blocks share a token's pages. In each, four groups of 128 threads score a page each at a time, one warp
fetches pages, two look at pages in mxfp4 before a group does, and one keeps the least score that can still be
among the k best: the blocks of a token count what they have seen by magnitude (1,024 bins) in global memory,
so each knows of the others. What is not below it goes to a list; the last block of a token to end chooses
among what the lists of all hold at the end.
"""

import cutlass
from cutlass import Int32, Int64, cute

from dsv4core_cuda.cutedsl.kernels._async import (
    barrier_arrive,
    barrier_start,
    barrier_wait,
    barriers_visible,
    bulk_copy,
    count_global,
    count_shared,
    look_global,
    look_i64,
    pause,
    raise_shared,
    store_i64,
    tell_global,
)
from dsv4core_cuda.cutedsl.kernels._best import (
    LEAST,
    SCRATCH,
    TEAM,
    keep,
    key_of,
    least_kept,
    together,
    write_ascending,
)
from dsv4core_cuda.cutedsl.kernels._index_scores import (
    FIRST,
    FIT,
    HEADS,
    QUERIES,
    SIZES,
    score_page,
    stage_queries,
    stage_weights,
)
from dsv4core_cuda.cutedsl.kernels._index_whole import LOOKING, ROWS, look_at_pages
from dsv4core_cuda.cutedsl.kernels._numerics import across, choose
from dsv4core_cuda.cutedsl.kernels._ptx import (
    load_i32,
    read_shared,
    read_shared_i64,
    shared_base,
    store_words,
    wait_turn,
    write_shared,
    write_shared_i64,
)

GROUPS = 4
ROUND = 8
"""Pages of a group that a list has room for at least: the team cuts it short of that."""
SHORT = 64
"""Pages of a block below which it waits for what the others have told of last."""
CAPACITY = 8192
"""Entries of a block's list."""
WORKSPACE = SIZES + 4
"""i32 that the blocks of a token share: bins, length of the common list, blocks that have ended."""
CANDIDATES, ENDED = 4 * SIZES, 4 * SIZES + 4
THREADS = TEAM + 128
"""A group beside the team, in fp8 half of it idle: registers are given to groups."""


def ready(wait, MXFP4):
    """Before pages are read: barriers, counters and queries are there. The fetching warp does not wait."""
    meet = cute.arch.barrier if wait else cute.arch.barrier_arrive
    meet(barrier_id=2, number_of_threads=TEAM + (64 + 32 * LOOKING if MXFP4 else 64))


def watched(wait):
    """After the last page: the least key will not change any more. The watching warp does not wait."""
    meet = cute.arch.barrier if wait else cute.arch.barrier_arrive
    meet(barrier_id=3, number_of_threads=TEAM + 32)


@cute.jit
def fetch_pages(
    pages, first, ring, full, empty, flags, request, table, width, limit, column_stride, cache, page_stride,
    STAGE: cutlass.Constexpr, STAGES: cutlass.Constexpr,
):  # fmt: skip
    """One warp: bring pages `first` .. to the ring; a flag says whether there is one."""
    lane = cute.arch.lane_idx()
    stage, parity = Int32(0), Int32(1)
    for begin in cutlass.range(0, pages, 32, unroll=1):
        page = Int32(-1)
        column = first + begin + lane
        if (begin + lane < pages) & (column < width):
            page = load_i32(table + request + Int64(column) * column_stride)
        for i in cutlass.range(cutlass.min(pages - begin, 32), unroll=1):
            there = cute.arch.shuffle_sync(page, i)
            if lane == 0:
                barrier_wait(empty + stage * 8, parity)
                live = (there >= 0) & (there < limit)
                write_shared(flags + stage * 4, [choose(Int32, live, 1, 0)])
                if live:
                    source = cache + Int64(there) * page_stride
                    bulk_copy(ring + stage * STAGE, source, STAGE, full + stage * 8)
                else:
                    barrier_arrive(full + stage * 8)
            cute.arch.sync_warp()
            stage = stage + 1
            if stage == STAGES:
                stage = Int32(0)
                parity = parity ^ 1


@cute.jit
def watch(sizes, shared_sizes, least, done, k):
    """One warp: tell what the block has counted, and raise the least key that can be among the k best.

    What was told before lies behind the counts.
    """
    lane = cute.arch.lane_idx()
    running = Int32(1)
    while running == 1:
        running = 1 - cute.arch.shuffle_sync(read_shared(done, 1)[0], 0)  # one answer for the warp
        for i in cutlass.range_constexpr(SIZES // 32):
            at = i * 128 + lane * 4
            count, told = read_shared(sizes + at, 1)[0], read_shared(sizes + 4 * SIZES + at, 1)[0]
            if count > told:
                tell_global(shared_sizes + Int64(at), count - told)
                write_shared(sizes + 4 * SIZES + at, [count])
        parts = [look_global(shared_sizes + Int64(i * 512 + lane * 16)) for i in range(SIZES // 128)]
        # the highest part with the k-th entry in it, or above it
        place, higher, counts = Int32(-1), Int32(0), parts[0]
        seen = Int32(0)
        for i in cutlass.range_constexpr(SIZES // 128 - 1, -1, -1):
            four = parts[i]
            size = across(four[0] + four[1] + four[2] + four[3], 32, "add")
            here = (place < 0) & (seen + size >= k)
            place = choose(Int32, here, i, place)
            higher = choose(Int32, here, seen, higher)
            counts = [choose(Int32, here, four[j], counts[j]) for j in range(4)]
            seen = seen + size
        own = counts[0] + counts[1] + counts[2] + counts[3]
        behind = own
        for step in cutlass.range_constexpr(5):
            other = cute.arch.shuffle_sync_down(behind, 1 << step)
            behind = behind + choose(Int32, lane + (1 << step) < 32, other, 0)
        total = higher + behind - own
        if (place >= 0) & (total < k) & (k <= total + own):
            found = Int32(-1)
            for i in cutlass.range_constexpr(4):
                total = total + counts[3 - i]
                found = choose(Int32, (found < 0) & (total >= k), place * 128 + lane * 4 + 3 - i, found)
            if found > 0:
                raise_shared(least, (found + FIRST) << 19)
        pause(100)


@cute.jit
def hand_over(
    entries, bins, counter, least, scalars, common, room, splits, k, thread
):  # fmt: skip
    """Put what is left of a block's list into the token's; 1 for the last block to do so.

    `common`: the token's counters. `room`: its list of k entries a block.
    """
    n = read_shared(counter, 1)[0]
    bound = Int64(read_shared(least, 1)[0]) << 32
    own = Int32(0)
    for i in cutlass.range(thread, n, TEAM, unroll=1):
        own = own + choose(Int32, read_shared_i64(entries + i * 8) >= bound, 1, 0)
    own = across(own, 32, "add")
    if thread % 32 == 0:
        count_shared(scalars, own)
    together()
    size = read_shared(scalars, 1)[0]
    if size > k:
        bound = least_kept(entries, n, k, bins, thread)
        size = Int32(k)
    if thread == 0:
        write_shared(scalars + 4, [count_global(common + CANDIDATES, size)])
    together()
    for i in cutlass.range(thread, n, TEAM, unroll=1):
        x = read_shared_i64(entries + i * 8)
        if x >= bound:
            store_i64(room + Int64(count_shared(scalars + 4, 1)) * 8, x)
    together()
    if thread == 0:
        write_shared(scalars + 8, [count_global(common + ENDED, 1)])
    together()
    return Int32(read_shared(scalars + 8, 1)[0] == splits - 1)


@cute.jit
def finish(entries, bins, counter, ring, common, room, k, visible, to, thread):
    """The k best of a token's list, ascending."""
    n = look_global(common + CANDIDATES)[0]
    have, taken = Int32(0), Int32(0)
    bound = Int64(LEAST) << 32
    while taken < n:
        if have > k:
            keep(entries, have, bound, counter, thread, CAPACITY)
            have = Int32(k)
        more = cutlass.min(n - taken, CAPACITY - have)
        for i in cutlass.range(thread, more, TEAM, unroll=1):
            write_shared_i64(entries + (have + i) * 8, look_i64(room + Int64(taken + i) * 8))
        together()
        have = have + more
        taken = taken + more
        if have > k:
            bound = least_kept(entries, have, k, bins, thread)
    write_ascending(entries, have, bound, cutlass.min(have, k), visible, to, bins, ring, thread)


@cute.kernel
def kernel(
    q: Int64, q_scales: Int64, weights: Int64, cache: Int64, lens: Int64, requests: Int64, table: Int64,
    out: Int64, shared_counts: Int64, candidates: Int64, heads: Int32, width: Int32, limit: Int32, k: Int32,
    start: Int32, shares: Int32, most: Int32, len_stride: Int64, request_stride: Int64, table_stride: Int64,
    column_stride: Int64, page_stride: Int64, weight_stride: Int64, out_stride: Int64,
    MXFP4: cutlass.Constexpr, BYTE: cutlass.Constexpr, STAGES: cutlass.Constexpr,
):  # fmt: skip
    """Block (s, i) has the s-th share of the pages of 64 entries of token `start` + i. Strides are bytes.

    A token's pages are cut into `shares`, or into more where a share would be more than `most` pages; blocks
    beyond them have nothing to do. `shared_counts` and `candidates` have a row for each i.
    """
    wait_turn()
    STAGE = cutlass.const_expr(64 * ((64 if MXFP4 else 128) + 4))
    thread = cute.arch.thread_idx()[0]
    split, row, _ = cute.arch.block_idx()
    t = start + row
    blocks = cute.arch.grid_dim()[0]
    warp = cute.arch.make_warp_uniform(thread // 32)
    queries = (shared_base() + 1023) & -1024
    ring = queries + QUERIES + (QUERIES // 2 if MXFP4 else 0)
    entries = ring + STAGES * STAGE
    sizes = entries + 8 * CAPACITY
    bins = sizes + 8 * SIZES
    folded = bins + SCRATCH
    rows = folded + (FIT + 16 if MXFP4 else 4 * HEADS)
    full = rows + (ROWS * STAGES if MXFP4 else 0)
    empty = full + 8 * STAGES
    seen = empty + 8 * STAGES
    flags = seen + 8 * STAGES
    counter = flags + 4 * STAGES
    least = counter + 4
    done = counter + 8
    scalars = counter + 16

    visible = load_i32(lens + Int64(t) * len_stride)
    request = Int64(load_i32(requests + Int64(t) * request_stride)) * table_stride
    visible = cutlass.min(cutlass.max(visible, 0), width * 64)
    to = out + Int64(t) * out_stride
    pages = (visible + 63) // 64
    splits = cutlass.min(cutlass.max(shares, (pages + most - 1) // most), blocks)
    if visible <= k:
        if split == 0:
            for i in cutlass.range(thread, k, THREADS, unroll=1):
                store_words(to + Int64(i) * 4, [choose(Int32, i < visible, i, -1)])
    elif split < splits:
        each, rest = pages // splits, pages % splits
        first = split * each + cutlass.min(split, rest)
        pages = each + choose(Int32, split < rest, 1, 0)
        common = shared_counts + Int64(row) * (4 * WORKSPACE)
        room = candidates + Int64(row) * Int64(blocks * k) * 8
        if warp >= 4 * GROUPS:
            cute.arch.setmaxregister_decrease(64)
            if warp == 4 * GROUPS:  # the first pages come while queries are laid out
                if thread % 32 == 0:
                    for s in cutlass.range_constexpr(STAGES):
                        barrier_start(full + 8 * s, 1)
                        barrier_start(empty + 8 * s, 4)
                        if cutlass.const_expr(MXFP4):
                            barrier_start(seen + 8 * s, 1)
                barriers_visible()
                cute.arch.sync_warp()
                ready(False, MXFP4)
                fetch_pages(
                    pages, first, ring, full, empty, flags, request, table, width, limit, column_stride,
                    cache, page_stride, STAGE, STAGES,
                )  # fmt: skip
            if warp == 4 * GROUPS + 1:
                ready(True, MXFP4)
                watch(sizes, common, least, done, k)
                if pages < SHORT:
                    watched(False)
            if cutlass.const_expr(MXFP4):  # noqa: SIM102 - the compiler decides this one
                if warp > 4 * GROUPS + 1:
                    ready(True, MXFP4)
                    look_at_pages(
                        warp - 4 * GROUPS - 2,
                        pages,
                        folded + FIT,
                        ring,
                        full,
                        seen,
                        flags,
                        rows,
                        STAGE,
                        STAGES,
                    )
        else:
            cute.arch.setmaxregister_increase(104)
            for i in cutlass.range_constexpr(2 * SIZES // TEAM):
                write_shared(sizes + (thread + i * TEAM) * 4, [Int32(0)])
            if thread == 0:
                for at, value in ((counter, 0), (least, LEAST), (done, 0), (scalars, 0)):
                    write_shared(at, [Int32(value)])
            stage_queries(queries, q, q_scales, t, heads, thread, MXFP4)
            if thread < HEADS:
                given = weights + Int64(t) * weight_stride
                stage_weights(folded, given, q_scales, t, heads, thread, MXFP4)
            barriers_visible()
            ready(True, MXFP4)
            group = warp // 4
            stage, parity = group, Int32(0)
            begin, end = Int32(0), cutlass.min(pages, CAPACITY // 64)
            while begin < pages:
                for n in cutlass.range(begin + group, end, GROUPS, unroll=1):
                    score_page(
                        stage, parity, (first + n) * 64, visible, ring, seen if MXFP4 else full, empty, flags,
                        rows, queries, folded, entries, counter, sizes, least, thread, STAGE, MXFP4, BYTE,
                    )  # fmt: skip
                    stage = stage + GROUPS
                    if stage >= STAGES:
                        stage = stage - STAGES
                        parity = parity ^ 1
                together()
                begin = end
                if begin < pages:  # as many more as the list has room for, if those are not few
                    listed = read_shared(counter, 1)[0]
                    together()
                    if listed > CAPACITY - ROUND * GROUPS * 64:
                        bound = least_kept(entries, listed, k, bins, thread)
                        keep(entries, listed, bound, counter, thread, CAPACITY)
                        if thread == 0:
                            raise_shared(least, key_of(bound))
                        listed = k
                    end = cutlass.min(begin + (CAPACITY - listed) // (GROUPS * 64) * GROUPS, pages)
            if thread == 0:
                write_shared(done, [Int32(1)])
            if pages < SHORT:  # others have told of little yet
                watched(True)
            last = hand_over(entries, bins, counter, least, scalars, common, room, splits, k, thread)
            if last == 1:
                finish(entries, bins, counter, ring, common, room, k, visible, to, thread)
