"""Which windows a run of tokens closes, and where their states lie: lists in shared memory."""

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
"""Windows that are worked on at once: a warp looks at so many tokens."""


RECORD = 16
"""Bytes of a window in a list: its slot, its last position, its request."""


def slot_and_last(windows, e):
    """The slot and the last position of a listed window."""
    return read_shared_i64(windows + e * RECORD), read_shared(windows + e * RECORD + 8, 1)[0]


@cute.jit
def closing(token, end, positions, requests, slots, kv_slots, strides, RATIO):
    """Whether a lane's token closes a window, its slot, position, request; and the lanes whose tokens do."""
    position, target, request, ok = Int64(-1), Int64(-1), Int32(-1), Int32(0)
    if token < end:
        at = Int64(token)
        position = load_i64(positions + at * strides[0])
        request = load_i32(requests + at * strides[1])
        given = load_i64(slots + at * strides[2])
        target = load_i64(kv_slots + at * strides[3])
        if (given >= 0) & (target >= 0) & (request >= 0) & (position >= 0):
            ok = Int32((Int32(position) & (RATIO - 1)) == RATIO - 1)
    return ok, target, Int32(position), request, cute.arch.vote_ballot_sync(ok == 1)


@cute.jit
def listed(windows, found):
    """Write what `closing` found, from `windows` on; return how many."""
    ok, target, last, request, lanes = found
    if ok == 1:
        place = windows + cute.arch.popc(lanes & ((Int32(1) << cute.arch.lane_idx()) - 1)) * RECORD
        write_shared_i64(place, target)
        write_shared(place + 8, [last, request])
    return cute.arch.popc(lanes)


@cute.jit
def look_up(
    places, windows, count, behind, table, width, row_stride, column_stride, page_stride, STATE_ROWS, STATES
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
            last, request = read_shared(windows + e * RECORD + 8, 2)
            index = last - behind - (STATES - 1) + j
            where = Int32(-1)
            if index >= 0:
                column = index // STATE_ROWS
                if column < width:
                    page = load_i32(table + Int64(request) * row_stride + Int64(column) * column_stride)
                    if page >= 0:
                        row = index - column * STATE_ROWS
                        where = Int32(Int64(page) * page_stride[0] + Int64(row) * page_stride[1])
            write_shared(places + (e * STATES + j) * 4, [where])
    cute.arch.sync_warp()
