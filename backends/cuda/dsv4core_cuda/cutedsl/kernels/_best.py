"""The k best of a list in shared memory, exactly, by a team of 512 threads.

An entry is one i64: its key (f32 as i32 in the same order) above what its index lacks to 2^31 - 1, so that no
two are equal and the lower index wins among equal keys.
"""

import cutlass
from cutlass import Int32, Int64, cute

from dsv4core_cuda.cutedsl.kernels._async import count_shared, leading_zeros, shifted_down, tell_shared
from dsv4core_cuda.cutedsl.kernels._numerics import across, choose
from dsv4core_cuda.cutedsl.kernels._ptx import (
    read_shared,
    read_shared_i64,
    store_words,
    write_shared,
    write_shared_i64,
)

TEAM = 512
BINS = 2048
LAST = 0x7FFFFFFF
SCRATCH = 4 * (BINS + 64)
"""Bytes of scratch: bins, sums of warps, what is found."""
LEAST = -0x80000000


def together():
    """Wait for the team."""
    cute.arch.barrier(barrier_id=1, number_of_threads=TEAM)


def entry(key, index):
    """Shapes: i32, i32 -> i64."""
    return (Int64(key) << 32) | Int64(Int32(LAST) - index)


def key_of(x):
    """The key of an entry."""
    return Int32(x >> 32)


def index_of(x):
    """The index of an entry."""
    return Int32(LAST) - Int32(x & LAST)


@cute.jit
def above(bins, thread):
    """How many lie in bins above each of a thread's four, and the four counts; bins become the former."""
    sums = bins + 4 * BINS
    lane = thread % 32
    counts = read_shared(bins + thread * 16, 4)
    own = counts[0] + counts[1] + counts[2] + counts[3]
    behind = own
    for step in cutlass.range_constexpr(5):
        other = cute.arch.shuffle_sync_down(behind, 1 << step)
        behind = behind + choose(Int32, lane + (1 << step) < 32, other, 0)
    if lane == 0:
        write_shared(sums + thread // 32 * 4, [behind])
    together()
    total = behind - own
    for part in cutlass.range_constexpr(4):
        words = read_shared(sums + part * 16, 4)
        for i in cutlass.range_constexpr(4):
            total = total + choose(Int32, part * 4 + i > thread // 32, words[i], 0)
    found = [Int32(0)] * 4
    for i in cutlass.range_constexpr(4):
        found[3 - i] = total
        total = total + counts[3 - i]
    write_shared(bins + thread * 16, found)
    return found, counts


@cute.jit
def clear(bins, thread):
    """Empty the bins."""
    write_shared(bins + thread * 16, [Int32(0)] * 4)
    together()


@cute.jit
def least_kept(entries, n, k, bins, thread):
    """The entry that exactly k of n > k are not below."""
    sums = bins + 4 * BINS
    result = sums + 4 * 32
    high, low = Int32(LEAST), Int32(LAST)
    for i in cutlass.range(thread, n, TEAM, unroll=1):
        key = key_of(read_shared_i64(entries + i * 8))
        high = cutlass.max(high, key)
        low = cutlass.min(low, key)
    high, low = across(high, 32, "max"), cute.arch.warp_redux_sync(low, "min")
    if thread % 32 == 0:
        write_shared(sums + thread // 32 * 8, [high, low])
    together()
    for w in cutlass.range_constexpr(TEAM // 32):
        pair = read_shared(sums + w * 8, 2)
        high = cutlass.max(high, pair[0])
        low = cutlass.min(low, pair[1])
    together()
    start = Int64(low) << 32
    shift = Int32(64 - 11) - leading_zeros(high - low)
    need, searching, width = Int32(k), Int32(1), Int64(BINS)
    while searching == 1:
        clear(bins, thread)
        for i in cutlass.range(thread, n, TEAM, unroll=1):
            at = shifted_down(read_shared_i64(entries + i * 8) - start, shift)
            if (at >= 0) & (at < width):
                tell_shared(bins + Int32(at) * 4, 1)
        together()
        before, counts = above(bins, thread)
        for i in cutlass.range_constexpr(4):
            if (before[i] < need) & (need <= before[i] + counts[i]):
                write_shared(result, [thread * 4 + i, before[i]])
                write_shared(result + 8, [counts[i]])
        together()
        place, passed = read_shared(result, 2)
        size = read_shared(result + 8, 1)[0]
        together()
        start = start + (Int64(place) << Int64(shift))
        need = need - passed
        if (need == size) | (shift == 0):
            searching = Int32(0)
        width = Int64(1) << Int64(cutlass.min(shift, 11))  # what the last bin holds, which others lie beyond
        shift = cutlass.max(shift - 11, 0)
    return start


@cute.jit
def keep(entries, n, least, counter, thread, CAPACITY: cutlass.Constexpr):
    """Close the gaps that entries below `least` leave; `counter` becomes how many are left."""
    mine = [read_shared_i64(entries + (thread + i * TEAM) * 8) for i in range(CAPACITY // TEAM)]
    together()
    if thread == 0:
        write_shared(counter, [Int32(0)])
    together()
    for i in cutlass.range_constexpr(CAPACITY // TEAM):
        if (thread + i * TEAM < n) & (mine[i] >= least):
            write_shared_i64(entries + count_shared(counter, 1) * 8, mine[i])
    together()


@cute.jit
def bucket(index, shift):
    """The bin of an index: a lower index lies in a higher bin."""
    return Int32(BINS - 1) - (index >> shift)


@cute.jit
def write_ascending(entries, n, least, kept, length, to, bins, room, thread):
    """The indices (below `length`) of the `kept` entries not below `least` to global memory, ascending.

    `room`: scratch for 4 bytes of each of them.
    """
    shift = cutlass.max(Int32(32 - 11) - leading_zeros(length), 0)
    clear(bins, thread)
    for i in cutlass.range(thread, n, TEAM, unroll=1):
        x = read_shared_i64(entries + i * 8)
        if x >= least:
            tell_shared(bins + bucket(index_of(x), shift) * 4, 1)
    together()
    above(bins, thread)
    together()
    for i in cutlass.range(thread, n, TEAM, unroll=1):
        x = read_shared_i64(entries + i * 8)
        if x >= least:
            write_shared(room + count_shared(bins + bucket(index_of(x), shift) * 4, 1) * 4, [index_of(x)])
    together()
    for i in cutlass.range(thread, kept, TEAM, unroll=1):
        index = read_shared(room + i * 4, 1)[0]
        # those of its bin stand beside it in any order: it comes behind the smaller ones among them
        place, j, same = i, i - 1, Int32(1)
        while (same == 1) & (j >= 0):
            other = read_shared(room + j * 4, 1)[0]
            same = Int32((other >> shift) == (index >> shift))
            place = place - Int32((same == 1) & (other > index))
            j = j - 1
        j, same = i + 1, Int32(1)
        while (same == 1) & (j < kept):
            other = read_shared(room + j * 4, 1)[0]
            same = Int32((other >> shift) == (index >> shift))
            place = place + Int32((same == 1) & (other < index))
            j = j + 1
        store_words(to + Int64(place) * 4, [index])
