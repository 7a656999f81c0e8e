"""Block sizes, warps and stages by device: data (`_devices`), never searched for at run time."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from triton.runtime import driver

from dsv4core.kernels.triton import _launch
from dsv4core.kernels.triton._devices import DEFAULT, devices, family


def tuned(kernel: str, tensor: Tensor, **shape: int) -> dict[str, int]:
    """How `kernel` is launched on a tensor's device: block sizes, `num_warps` and so on, as keywords.

    `shape` (widths, numbers of heads; never tokens where that could change a bit) chooses among rows: the
    first whose `least` it reaches.
    """
    place = _place(kernel, device_class(tensor), tuple(shape.items()))
    if _trial is not None:
        return _trial(place)
    return {k: v for k, v in row_at(place).items() if k != "least"}


@dataclass(frozen=True)
class Place:
    """Where a row stands: the family whose file has it, the kernel, the number of the row."""

    family: str
    kernel: str
    number: int


def row_at(place: Place) -> Mapping[str, Any]:
    """The row at a place, with the shape it is for."""
    return devices()[place.family].kernels[place.kernel][place.number]


@cache
def _place(kernel: str, name: str, shape: tuple[tuple[str, int], ...]) -> Place:
    name = _family(kernel, name)
    given = dict(shape)
    rows = devices()[name].kernels[kernel]
    fits = (all(given[k] >= least for k, least in row.get("least", {}).items()) for row in rows)
    return Place(name, kernel, list(fits).index(True))


def _family(kernel: str, name: str) -> str:
    return name if kernel in devices()[name].kernels else DEFAULT


def rows_of(kernel: str, tensor: Tensor) -> list[dict[str, int]]:
    """All that `tuned` can answer on a tensor's device, whatever the shape."""
    rows = devices()[_family(kernel, device_class(tensor))].kernels[kernel]
    return [{k: v for k, v in row.items() if k != "least"} for row in rows]


_trial: Callable[[Place], dict[str, int]] | None = None


@contextmanager
def trial(choose: Callable[[Place], dict[str, int]]) -> Iterator[None]:
    """Let `choose` answer for the table, while launches are being tuned."""
    global _trial
    _trial, _launch.ahead = choose, False
    try:
        yield
    finally:
        _trial, _launch.ahead = None, True


def device_class(tensor: Tensor) -> str:
    """The name of the family of a tensor's device; a device that no file names takes modest sizes."""
    if _launch.assumed is not None:
        return _launch.assumed
    return "interpreter" if _launch.interpreted else _found(tensor.device)


@cache
def _found(device: torch.device) -> str:
    if device.type == "cpu":  # nothing can be launched there, and launching says so
        return DEFAULT
    with _launch.on(device):
        target = driver.active.get_current_target()
    return family(target.backend, target.arch)


def native_e4m3(tensor: Tensor) -> bool:
    """Whether the device converts f32 to and from OCP e4m3 in one rounding: NVIDIA from SM90 on.

    SM89 goes through half precision and rounds twice; gfx942's own format is FNUZ.
    """
    return devices()[device_class(tensor)].e4m3
