"""Families of devices as data: this module imports no triton, so that a probe may ask it.

`devices/NAME.json` describes a family: how triton's driver names its devices, what they can do, and for each
kernel the arguments of a launch. `dsv4core tune` measures and writes these files.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

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


def family(backend: str, arch: Any) -> str:
    """The family that a target of triton belongs to. Intel's driver gives a dictionary as arch."""
    text = str(arch["name"] if isinstance(arch, Mapping) else arch)
    named = (n for n, d in devices().items() if d.backend == backend and re.fullmatch(d.arch, text))
    return next(named, DEFAULT)
