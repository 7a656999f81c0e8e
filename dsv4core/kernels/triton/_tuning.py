"""Block sizes, warps and stages by device: data files, chosen by measurement, never searched for at run time.

`devices/NAME.json` describes a family of devices: how triton's driver names them, what they can do, and for
each kernel the arguments of a launch. `dsv4core tune` measures and writes these files.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from triton.runtime import driver

from dsv4core.kernels.triton import _launch

FOLDER = Path(__file__).with_name("devices")
DEFAULT = "default"


@dataclass(frozen=True)
class Device:
    """A family of devices and the launch arguments of kernels there.

    `backend` and `arch` (a regular expression) are how triton's driver names it; an Intel device is known by
    its product name. `e4m3`: converts f32 to and from OCP e4m3 in one rounding. `target`, `shared` (bytes of
    shared memory) and `matrix` (what its matrix instructions are called, a regular expression) serve
    ahead-of-time compilation. `kernels`: rows by kernel, of which the first that fits is taken.
    """

    of: str
    measured: str
    e4m3: bool
    kernels: Mapping[str, tuple[Mapping[str, Any], ...]]
    backend: str = ""
    arch: str = ""
    target: tuple[Any, ...] = ()
    shared: int = 0
    matrix: str = ""


@cache
def devices() -> dict[str, Device]:
    """Every family by the name of its file."""
    return {file.stem: Device(**json.loads(file.read_text())) for file in sorted(FOLDER.glob("*.json"))}


def tuned(kernel: str, tensor: Tensor, **shape: int) -> dict[str, int]:
    """How `kernel` is launched on a tensor's device: block sizes, `num_warps` and so on, as keywords.

    `shape` (widths, numbers of heads; never tokens where that could change a bit) chooses among rows: the
    first whose `least` it reaches.
    """
    return dict(_row(kernel, device_class(tensor), tuple(shape.items())))


@cache
def _row(kernel: str, name: str, shape: tuple[tuple[str, int], ...]) -> dict[str, int]:
    rows = devices()[name].kernels.get(kernel) or devices()[DEFAULT].kernels[kernel]
    given = dict(shape)
    fitting = (r for r in rows if all(given[k] >= least for k, least in r.get("least", {}).items()))
    return {k: v for k, v in next(fitting).items() if k != "least"}


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


def family(backend: str, arch: Any) -> str:
    """The family that a target of triton belongs to. Intel's driver gives a dictionary as arch."""
    text = str(arch["name"] if isinstance(arch, Mapping) else arch)
    named = (n for n, d in devices().items() if d.backend == backend and re.fullmatch(d.arch, text))
    return next(named, DEFAULT)


def native_e4m3(tensor: Tensor) -> bool:
    """Whether the device converts f32 to and from OCP e4m3 in one rounding: NVIDIA from SM90 on.

    SM89 goes through half precision and rounds twice; gfx942's own format is FNUZ.
    """
    return devices()[device_class(tensor)].e4m3
