"""Seconds per call, in runs that take turns, and the machine they were measured on."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from statistics import quantiles
from typing import Any
from weakref import WeakKeyDictionary

import torch

from dsv4core.probe import installed_version
from dsv4core.runtime import captured, device_name

RUN_SECONDS = 2e-3  # a run repeats short calls until it is at least this long
LEAST_RUNS = 3
DISTRIBUTIONS = ("dsv4core", "torch", "triton", "sgl-flash-mla", "aiter")

Call = Callable[[], Any]
Timer = Callable[[Call, int], float]
"""Seconds per call of calling something so many times."""


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """Seconds per call of every run, in the order of the runs; `calls` were made in each."""

    seconds: tuple[float, ...]
    calls: int

    @property
    def spread(self) -> Spread:
        """Over the runs."""
        return spread(self.seconds)

    def over(self, other: Series) -> Spread:
        """Times this one takes longer, run by run: both sides of a pair met the machine in the same state."""
        return spread([mine / theirs for mine, theirs in zip(self.seconds, other.seconds, strict=True)])


def alternate(
    calls: Mapping[str, Call], timers: Mapping[str, Timer], runs: int, seconds: float = float("inf"),
    least: int = 1,
) -> dict[str, Series]:  # fmt: skip
    """Time every call in rounds, one after the other, until the runs or the seconds are used up.

    A round that is not counted comes first, and says how many calls make a run: `least` or more.
    """
    first = {name: timers[name](call, 1) for name, call in calls.items()}
    repeats = {name: max(least, round(RUN_SECONDS / max(spent, 1e-9))) for name, spent in first.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    begin = time.perf_counter()
    for turn in range(runs):
        if turn >= LEAST_RUNS and time.perf_counter() - begin > seconds:
            break
        for name, call in calls.items():
            taken[name].append(timers[name](call, repeats[name]))
    return {name: Series(tuple(values), repeats[name]) for name, values in taken.items()}


def spread(values: tuple[float, ...] | list[float]) -> Spread:
    """Median and quartiles of some numbers."""
    low, middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return Spread(middle, low, high)


def timer(clock: str, device: str) -> Timer:
    """A clock of `CLOCKS` for calls that run on a device."""
    return CLOCKS[clock](device)


def machine(devices: Mapping[str, str]) -> dict[str, Any]:
    """What a figure needs beside it: processor, threads, load, versions, the names of devices."""
    found: dict[str, Any] = {
        "cpu": device_name("cpu"),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "devices": {name: device_name(kind) for name, kind in devices.items()},
    }
    versions = {name: installed_version(name) for name in DISTRIBUTIONS}
    return {**found, "versions": {name: version for name, version in versions.items() if version}}


def _wall(device: str) -> Timer:
    """The time on the wall, from an idle device to an idle device."""

    def run(call: Call, repeat: int) -> float:
        _wait(device)
        start = time.perf_counter()
        for _ in range(repeat):
            call()
        _wait(device)
        return (time.perf_counter() - start) / repeat

    return run


def _wait(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


def _cpu(device: str) -> Timer:
    """The processor's time of this thread: for one thread of a host that does other work too."""

    def run(call: Call, repeat: int) -> float:
        start = time.thread_time()
        for _ in range(repeat):
            call()
        return (time.thread_time() - start) / repeat

    return run


def _launch(device: str) -> Timer:
    """The host's time to start calls; the device's work is not waited for."""

    def run(call: Call, repeat: int) -> float:
        _wait(device)
        start = time.perf_counter()
        for _ in range(repeat):
            call()
        spent = time.perf_counter() - start
        _wait(device)
        return spent / repeat

    return run


def _graph(device: str) -> Timer:
    """The device's time of calls captured into one graph. Raises BackendError where nothing captures.

    A call is captured when its number of calls changes; results are kept, so that none of them writes into
    the memory of another.
    """
    graphs: WeakKeyDictionary[Call, tuple[int, Callable[[], None], Any]] = WeakKeyDictionary()

    def run(call: Call, repeat: int) -> float:
        if graphs.get(call, (0,))[0] != repeat:
            graphs.pop(call, None)
            replay, results = captured(lambda: [call() for _ in range(repeat)], device, 1)
            graphs[call] = repeat, replay, results
            replay()
        start, end = (torch.Event(device, enable_timing=True) for _ in range(2))
        start.record()
        graphs[call][1]()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3 / repeat

    return run


def in_turn(calls: Sequence[Call]) -> Call:
    """One call that makes each of `calls` in its turn: together they need more than a cache holds."""
    endless = cycle(calls)
    return lambda: next(endless)()


CLOCKS: Mapping[str, Callable[[str], Timer]] = {
    "wall": _wall,
    "cpu": _cpu,
    "launch": _launch,
    "graph": _graph,
}
