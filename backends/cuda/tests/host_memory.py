"""Shared and global memory as a kernel reaches it: words, counters, barriers, copies, other blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from host_device import BASE, Fault, Phase, words
from host_launch import launched
from host_numbers import Int32, Int64


def accesses(form: str, size: int) -> tuple[Callable[..., Any], Callable[..., None]]:
    kind = {"i": Int32, "q": Int64}[form]

    def read(address: Any, n: int = 1) -> Any:
        launched.device.rest()
        block = launched.device.now.block
        return [kind(x) for x in words(block.bytes, block.place(address, size * n), f"<{n}{form}")]

    def write(address: Any, values: Any) -> None:
        launched.device.rest()
        block, n = launched.device.now.block, len(values)
        words(block.bytes, block.place(address, size * n, True), f"<{n}{form}", *map(kind, values))

    return read, write


def read_byte(address: Any) -> Any:
    launched.device.rest()
    block = launched.device.now.block
    return Int32(block.bytes[block.place(address, 1)])


def count_shared(address: Any, more: Any) -> Any:
    launched.device.rest()
    return changed(
        launched.device.now.block.bytes, launched.device.now.block.place(address, 4, True), lambda x: x + more
    )


def raise_shared(address: Any, least: Any) -> Any:
    return changed(
        launched.device.now.block.bytes,
        launched.device.now.block.place(address, 4, True),
        lambda x: max(x, least),
    )


def count_global(address: Any, more: Any) -> Any:
    launched.device.rest()
    return changed(*launched.device.memory.at(address, 4), lambda x: x + more)


def changed(array: Any, offset: int, function: Callable[[Any], Any]) -> Any:
    (before,) = words(array, offset, "<i")
    words(array, offset, "<i", Int32(function(Int32(before))))
    return Int32(before)


def loaded(form: str, size: int, kind: type) -> Callable[..., Any]:
    def load(address: Any) -> Any:
        found = [kind(x) for x in words(*launched.device.memory.at(address, size), form)]
        return found if len(found) > 1 else found[0]

    return load


def store_words(address: Any, values: Any) -> None:
    words(*launched.device.memory.at(address, 4 * len(values)), f"<{len(values)}i", *map(Int32, values))


def barrier_start(address: Any, arrivals: Any) -> None:
    launched.device.now.block.place(address, 8)
    launched.device.now.block.phases[int(address)] = Phase(int(arrivals), int(arrivals))


def barrier_wait(address: Any, parity: Any) -> None:
    launched.device.rest()
    phase = launched.device.now.block.phase(address)
    while phase.parity == parity:  # the phase of that parity is not over
        phase.waiting.append(launched.device.now)
        launched.device.wait()


def bulk_copy(target: Any, source: Any, size: int, barrier: Any) -> None:
    block, start = launched.device.now.block, int(target) - BASE
    array, offset = launched.device.memory.at(source, size)
    if size % 16 or target % 16 or start < 0 or start + size > len(block.bytes):
        raise Fault(f"a copy of {size} bytes to {int(target):#x}")
    phase = launched.device.arrive(barrier, size)

    def end() -> None:
        block.bytes[start : start + size] = array[offset : offset + size]
        phase.bytes -= size
        launched.device.settle(phase)

    launched.device.copy(end)


def copy_ahead(target: Any, source: Any, size: int) -> None:
    """A copy of 4 to 16 bytes that the thread waits for by groups."""
    thread, group = launched.device.now, len(launched.device.now.groups) - 1
    offset, (array, start) = thread.block.place(target, size, True), launched.device.memory.at(source, size)
    thread.groups[group] += 1

    def end() -> None:
        thread.block.bytes[offset : offset + size] = array[start : start + size]
        thread.groups[group] -= 1
        if thread.due and not any(thread.groups[: thread.due]):
            thread.due = 0
            launched.device.ready.append(thread)

    launched.device.copy(end)


def copies_wait(pending: int) -> None:
    thread = launched.device.now
    closed = len(thread.groups) - 1 - pending
    if any(thread.groups[: max(closed, 0)]):
        thread.due = closed
        launched.device.wait()


def peer(address: Any, rank: Any) -> Any:
    """A shared address with the block's number, which is not 0 there, in its high bits."""
    return Int32(int(address) | (int(rank) + 1) << 24)


def send(address: Any, xs: Any, barrier: Any) -> None:
    there = launched.cluster[(int(address) >> 24) - 1]
    phase = there.phase(int(barrier) & 0xFFFFFF)
    if barrier >> 24 != address >> 24:
        raise Fault("bytes are counted in another block")
    offset = there.place(int(address) & 0xFFFFFF, 16, True)

    def end() -> None:
        words(there.bytes, offset, "<4f", *xs)
        phase.bytes -= 16
        launched.device.settle(phase)

    launched.device.copy(end)


def read_peer(address: Any, n: int, there: Any) -> Any:
    if not there:
        return [Int32(0)] * n
    launched.device.rest()
    block = launched.cluster[(int(address) >> 24) - 1]
    place = block.place(int(address) & 0xFFFFFF, 4 * n)
    return [Int32(x) for x in words(block.bytes, place, f"<{n}i")]


def write_peer(address: Any, x: Any) -> None:
    launched.device.rest()
    block = launched.cluster[(int(address) >> 24) - 1]
    words(block.bytes, block.place(int(address) & 0xFFFFFF, 4, True), "<f", float(x))
