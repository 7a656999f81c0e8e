"""Which windows a run of tokens closes, and where their states lie: a warp's own list in shared memory."""

import cutlass
from cutlass import Int32, Int64, cute

from dsv4core_cuda.cutedsl.kernels._ptx import (
    load_i32,
    load_i64,
    read_shared,
    read_shared_i64,
    write_shared,
    write_shared_i64,
)

MOST = 32
"""Windows of a list: a warp looks at so many tokens at once."""


def list_bytes(states):
    """Bytes of a list: for each window the places of `states` states, its slot, last position and request."""
    return MOST * (4 * states + 16)


def slot_of(place, e, STATES):
    """The slot of a listed window."""
    return read_shared_i64(place + MOST * 4 * STATES + e * 8)


def last_of(place, e, STATES):
    """The last position of a listed window."""
    return read_shared(place + MOST * (4 * STATES + 8) + e * 4, 1)[0]


@cute.jit
def closed(place, t, end, positions, requests, slots, kv_slots, strides, RATIO, STATES):
    """Write the list of windows that tokens t .. t + 31 close; return how many. `end`: tokens behind it."""
    lane = cute.arch.lane_idx()
    token = t + lane
    position, target, request, ok = Int64(-1), Int64(-1), Int32(-1), Int32(0)
    if token < end:
        at = Int64(token)
        position = load_i64(positions + at * strides[0])
        request = load_i32(requests + at * strides[1])
        given = load_i64(slots + at * strides[2])
        target = load_i64(kv_slots + at * strides[3])
        if (given >= 0) & (target >= 0) & (request >= 0) & (position >= 0):
            ok = Int32((Int32(position) & (RATIO - 1)) == RATIO - 1)
    found = cute.arch.vote_ballot_sync(ok == 1)
    if ok == 1:
        rank = cute.arch.popc(found & ((Int32(1) << lane) - 1))
        write_shared_i64(place + MOST * 4 * STATES + rank * 8, target)
        write_shared(place + MOST * (4 * STATES + 8) + rank * 4, [Int32(position)])
        write_shared(place + MOST * (4 * STATES + 12) + rank * 4, [request])
    cute.arch.sync_warp()
    return cute.arch.popc(found)


@cute.jit
def look_up(
    place, count, behind, table, width, row_stride, column_stride, page_stride, STATE_ROWS, STATES
):  # fmt: skip
    """Write where STATES states of each listed window lie, the newest `behind` positions before its last.

    Places are in units of 16 bytes from the first state; -1 for a state that is not there.
    """
    lane = cute.arch.lane_idx()
    AT_ONCE = cutlass.const_expr(32 // STATES)
    j = lane % STATES
    for step in cutlass.range((count + AT_ONCE - 1) // AT_ONCE, unroll=1):
        e = step * AT_ONCE + lane // STATES
        if e < count:
            last = last_of(place, e, STATES)
            request = read_shared(place + MOST * (4 * STATES + 12) + e * 4, 1)[0]
            index = last - behind - (STATES - 1) + j
            where = Int32(-1)
            if index >= 0:
                column = index // STATE_ROWS
                if column < width:
                    page = load_i32(table + Int64(request) * row_stride + Int64(column) * column_stride)
                    if page >= 0:
                        row = index - column * STATE_ROWS
                        where = Int32(Int64(page) * page_stride[0] + Int64(row) * page_stride[1])
            write_shared(place + (e * STATES + j) * 4, [where])
    cute.arch.sync_warp()


