"""Seconds per call, in runs that take turns, and the machine they were measured on."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

import torch

from dsv4core.probe import installed_version
from dsv4core.runtime import device_name

RUN_SECONDS = 2e-3  # a run repeats short calls until it is at least this long
DISTRIBUTIONS = ("dsv4core", "torch", "triton", "sgl-flash-mla", "aiter")


@dataclass(frozen=True)
class Times:
    """Median and quartiles of the seconds per call over the runs; `calls` were made in each run."""

    median: float
    low: float
    high: float
    runs: int
    calls: int


def alternate(
    calls: Mapping[str, Callable[[], Any]], devices: Mapping[str, str], runs: int
) -> dict[str, Times]:
    """Time every call `runs` times in rounds, one after the other: drift of the machine meets all alike."""
    repeats = {name: max(1, round(RUN_SECONDS / _seconds(calls[name], devices[name], 1))) for name in calls}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            taken[name].append(_seconds(call, devices[name], repeats[name]))
    return {name: _summary(seconds, repeats[name]) for name, seconds in taken.items()}


def machine(devices: Mapping[str, str]) -> dict[str, Any]:
    """What a figure needs beside it: processor, threads, versions and, for other devices, their names."""
    found: dict[str, Any] = {
        "cpu": device_name("cpu"),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "devices": {name: device_name(kind) for name, kind in devices.items()},
    }
    versions = {name: installed_version(name) for name in DISTRIBUTIONS}
    return {**found, "versions": {name: version for name, version in versions.items() if version}}


def _seconds(call: Callable[[], Any], device: str, repeat: int) -> float:
    _wait(device)
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    _wait(device)
    return (time.perf_counter() - start) / repeat


def _wait(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


def _summary(seconds: list[float], calls: int) -> Times:
    low, median, high = quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    return Times(median, low, high, len(seconds), calls)
