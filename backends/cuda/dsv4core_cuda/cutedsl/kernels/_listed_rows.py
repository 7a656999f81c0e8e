"""Where the rows lie that two lists name, one list behind the other."""

from cutlass import Int32, Int64, cute

ROW = 576
"""Bytes of a row; its eight scale bytes lie behind all rows of a page."""


@cute.jit
def asked(n, t, main, extra):
    """Begin to read entry n of both lists (see `listed`): its slot (-1 behind a width), its list's length."""
    second = n >= main[8]
    m = n - main[8] if second else n
    slots, slot_stride, lens, width = [
        b if second else a for a, b in zip(main[5:], extra[5:], strict=True)
    ]  # fmt: skip
    slot, length = Int32(-1), Int32(0)
    if m < width:
        length = load_word(lens + Int64(t) * 4)
        slot = load_word(slots + (Int64(t) * slot_stride + m) * 4)
    return slot, length


@cute.jit
def located(n, slot, length, main, extra, shifts):
    """What `listed` says of entry n, from what `asked` has read: other work may stand between the two."""
    second = n >= main[8]
    m = n - main[8] if second else n
    pages, stride, rows, part, limit = [
        b if second else a for a, b in zip(main[:5], extra[:5], strict=True)
    ]  # fmt: skip
    shift = shifts >> 6 if second else shifts & 63
    row = pages
    scales = pages
    live = Int32(0)
    if (m < length) & (slot >= 0) & (slot < limit):
        number = Int32((Int64(slot) * part) >> Int64(shift))
        inside = slot - number * rows
        page = pages + Int64(number) * stride
        row = page + inside * ROW
        scales = page + (rows * ROW + inside * 8)
        live = Int32(1)
    return row, scales, live


@cute.jit
def listed(n, t, main, extra, shifts):
    """Address of row n of both lists, that of its scales, and 1 where a row is (else an address to read).

    A list is (pages, bytes between them, rows of a page, what divides by rows, slots behind the last, its
    slots, elements between tokens, its lengths, its width).
    """
    second = n >= main[8]
    m = n - main[8] if second else n
    pages, stride, rows, part, limit, slots, slot_stride, lens, width = [
        b if second else a for a, b in zip(main, extra, strict=True)
    ]
    shift = shifts >> 6 if second else shifts & 63
    row = pages
    scales = pages
    live = Int32(0)
    if m < width:
        length = load_word(lens + Int64(t) * 4)
        slot = load_word(slots + (Int64(t) * slot_stride + m) * 4)
        if (m < length) & (slot >= 0) & (slot < limit):
            number = Int32((Int64(slot) * part) >> Int64(shift))
            inside = slot - number * rows
            page = pages + Int64(number) * stride
            row = page + inside * ROW
            scales = page + (rows * ROW + inside * 8)
            live = Int32(1)
    return row, scales, live


@cute.jit
def load_word(address):
    """An i32 of global memory."""
    return cute.make_tensor(
        cute.make_ptr(Int32, address, cute.AddressSpace.gmem, assumed_align=4), cute.make_layout(1)
    )[0]
