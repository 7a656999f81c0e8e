"""A device on the host: a kernel's source runs thread by thread, in random orders, every access checked.

Each thread of a block is one of Python's, of which one runs at a time. One that waits for others hands over
to any that can go on; copies arrive at any later time. What no device promises anything for is a `Fault`.
"""

from __future__ import annotations

import random
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

BASE = 1024  # of a block's shared memory


class Fault(Exception):
    """An access, an arrival or a wait that no device promises anything for."""


class Memory:
    """Global memory: arrays at addresses far apart."""

    def __init__(self) -> None:
        self.parts: list[np.ndarray] = []

    def add(self, array: np.ndarray) -> int:
        """Put a contiguous array there: its address."""
        self.parts.append(array.view(np.uint8).reshape(-1))
        return len(self.parts) << 40

    def at(self, address: int, size: int) -> tuple[np.ndarray, int]:
        """The bytes around an address, and where in them it is."""
        part, offset = (int(address) >> 40) - 1, int(address) & ((1 << 40) - 1)
        if not 0 <= part < len(self.parts) or offset + size > len(self.parts[part]):
            raise Fault(f"{size} bytes of global memory at {address:#x}")
        if offset % min(size, 16):
            raise Fault(f"{size} bytes of global memory at {address:#x}: misaligned")
        return self.parts[part], offset


@dataclass
class Phase:
    """A barrier in shared memory (`mbarrier`)."""

    count: int
    pending: int
    bytes: int = 0
    parity: int = 0
    waiting: list[Thread] = field(default_factory=list)


@dataclass
class Meeting:
    """Threads that bring something each and go on when all are there."""

    what: Any
    brought: dict[int, Any] = field(default_factory=dict)
    waiting: list[Thread] = field(default_factory=list)
    results: Sequence[Any] = ()


class Block:
    """A block's shared memory and barriers. Memory begins as anything."""

    def __init__(self, index: tuple[int, int, int], shared: int, seed: int) -> None:
        self.index = index
        self.bytes = np.random.default_rng(seed).integers(0, 256, shared, dtype=np.uint8)
        self.meetings: dict[Any, Meeting] = {}
        self.phases: dict[int, Phase] = {}

    def place(self, address: int, size: int, write: bool = False) -> int:
        """Where in `bytes` a shared address is."""
        offset = int(address) - BASE
        if offset < 0 or offset + size > len(self.bytes) or offset % size:
            raise Fault(f"{size} bytes of shared memory at {int(address):#x}")
        if write and int(address) & ~7 in self.phases:
            raise Fault(f"a barrier at {int(address):#x} is written over")
        return offset

    def phase(self, address: int) -> Phase:
        """The barrier at a shared address."""
        if int(address) not in self.phases:
            raise Fault(f"no barrier at {int(address):#x}")
        return self.phases[int(address)]


def closed() -> threading.Lock:
    """A lock that one thread takes and waits at until another gives it back."""
    lock = threading.Lock()
    lock.acquire()
    return lock


class Thread:
    """A thread of a block."""

    def __init__(self, device: Device, block: Block, index: int, run: Callable[[], None]) -> None:
        self.block, self.index = block, index
        self.rounds = 0  # of its cluster's barrier that it has waited for
        self.groups, self.due = [0], 0
        """Copies under way of each group that the thread has closed, and of the open one; how many of these
        groups it waits for."""
        self.turn = closed()
        threading.Thread(target=device.body, args=(self, run), daemon=True).start()


class Device:
    """Runs the threads of some blocks; `late`: the first copy comes when nothing else happens any more."""

    def __init__(self, seed: int, late: bool = False, restless: float = 0.0) -> None:
        self.random, self.restless = random.Random(seed), restless
        self.ready: list[Thread] = []
        self.asleep: list[tuple[int, Thread]] = []
        self.copies: list[Callable[[], None]] = []
        self.kept: Callable[[], None] | None = None
        self.late, self.steps, self.left = late, 0, 0
        self.turn = closed()
        self.fault: BaseException | None = None
        self.memory = Memory()
        self.now: Thread

    def body(self, thread: Thread, run: Callable[[], None]) -> None:
        """What the thread of Python behind one does."""
        thread.turn.acquire()
        try:
            run()
        except BaseException as error:  # the device raises it
            self.fault = error
        self.left -= 1
        self.turn.release()

    def wait(self) -> None:
        """Hand over; whoever ends the wait puts the thread among those ready."""
        thread = self.now
        self.turn.release()
        thread.turn.acquire()

    def rest(self) -> None:
        """Now and then let others come between two accesses."""
        if self.restless and self.random.random() < self.restless:
            self.ready.append(self.now)
            self.wait()

    def sleep(self) -> None:
        """Go on some time later."""
        self.asleep.append((self.steps + self.random.randrange(2000, 20000), self.now))
        self.wait()

    def copy(self, job: Callable[[], None]) -> None:
        """Do what ends a copy, at some time."""
        if self.late:
            self.late, self.kept, self.held = False, job, self.steps
        else:
            self.copies.append(job)

    def meet(
        self, key: Any, size: int, member: int, what: Any, value: Any, combine: Any, stay: bool = True
    ) -> Any:
        """Bring `value` to a meeting of `size`; -> the member's part of `combine(all values)`."""
        meetings = self.now.block.meetings
        meeting = meetings.setdefault(key, Meeting(what))
        if meeting.what != what or member in meeting.brought:
            raise Fault(f"{key}: {what} by {member} where others are at {meeting.what}")
        meeting.brought[member] = value
        if len(meeting.brought) == size:
            del meetings[key]
            if combine:
                meeting.results = combine([meeting.brought[i] for i in range(size)])
            self.ready += meeting.waiting
        elif stay:
            meeting.waiting.append(self.now)
            self.wait()
        return meeting.results[member] if combine else None

    def settle(self, phase: Phase) -> None:
        """End a phase that nothing is missing from."""
        if phase.pending == 0 and phase.bytes == 0:
            phase.parity, phase.pending = phase.parity ^ 1, phase.count
            self.ready += phase.waiting
            phase.waiting = []

    def arrive(self, address: int, expected: int = 0) -> Phase:
        """Arrive at a barrier that may then wait for bytes, too."""
        phase = self.now.block.phase(address)
        if phase.pending == 0:
            raise Fault(f"one arrival too many at {int(address):#x}")
        phase.pending -= 1
        phase.bytes += expected
        self.settle(phase)
        return phase

    def run(self, blocks: Sequence[Block], threads: int, kernel: Callable[[], None]) -> None:
        """Run blocks side by side to their end."""
        for block in blocks:
            self.ready += [Thread(self, block, i, kernel) for i in range(threads)]
        self.left = len(self.ready)
        while self.left:
            self.steps += 1
            if self.kept and self.steps > self.held + 60_000:  # nobody but the watching warp went on for long
                self.kept, job = None, self.kept
                job()
            if self.copies and (not self.ready or self.random.random() < 0.02):
                self.copies.pop(self.random.randrange(len(self.copies)))()
            woken = [t for at, t in self.asleep if at <= self.steps or not self.ready]
            self.asleep = [(at, t) for at, t in self.asleep if t not in woken] if woken else self.asleep
            self.ready += woken
            if not self.ready:
                if self.copies or self.kept:
                    continue
                raise Fault(f"{self.left} threads wait for each other")
            i = self.random.randrange(len(self.ready))
            self.ready[i], self.ready[-1] = self.ready[-1], self.ready[i]
            self.now = self.ready.pop()
            self.now.turn.release()
            self.turn.acquire()
            if self.fault:
                raise self.fault


def words(array: np.ndarray, offset: int, form: str, *values: int) -> tuple[int, ...]:
    """Read words of a form ("<4i"), or write them."""
    if values:
        struct.pack_into(form, array, offset, *values)
        return values
    return struct.unpack_from(form, array, offset)
