"""What varies between AMD devices, as data: by gfx name, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

TOPOLOGY = Path("/sys/class/kfd/kfd/topology/nodes")
DRIVER = Path("/sys/module/amdgpu/version")


@dataclass(frozen=True)
class Gfx:
    """One architecture: wavefront, the e4m3 of its matrix units, and what bounds a kernel on it.

    Registers are per SIMD lane and shared by the wavefronts of a SIMD: `vgprs` counts architectural and
    accumulation registers together. `cus`, `gb_s` and `bf16_tflops` are of the named product, dense; 0 where
    nothing is estimated.
    """

    name: str
    products: str
    wavefront: int
    fp8: str  # "fnuz", "ocp" or "none": what the hardware converts and multiplies
    lds: int  # bytes a compute unit
    vgprs: int = 512
    waves: int = 8  # wavefronts a SIMD holds at most
    simds: int = 4
    cus: int = 0
    gb_s: float = 0.0
    bf16_tflops: float = 0.0


DEVICES = {
    gfx.name: gfx
    for gfx in (
        Gfx("gfx90a", "MI210, MI250", 64, "none", 65536),
        Gfx("gfx942", "MI300X, MI325X", 64, "fnuz", 65536, cus=304, gb_s=5300, bf16_tflops=1307),
        Gfx("gfx950", "MI350X, MI355X", 64, "ocp", 163840, cus=256, gb_s=8000, bf16_tflops=2500),
        Gfx("gfx1151", "Ryzen AI Max", 32, "none", 65536, vgprs=1536, waves=16, simds=2),
        Gfx("gfx1201", "RX 9070", 32, "ocp", 65536, vgprs=1536, waves=16, simds=2),
        Gfx("gfx1250", "MI400", 32, "ocp", 327680, vgprs=1024, waves=16),
    )
}


def gfx(name: str) -> Gfx:
    """The row of an architecture; `gcnArchName` may carry features behind a colon.

    An unknown one is taken for a device without fp8 of its own, with the wavefront of its generation.
    """
    plain = name.partition(":")[0]
    wavefront = 64 if plain.startswith("gfx9") else 32
    return DEVICES.get(plain, Gfx(plain, "not known here", wavefront, "none", 65536))


def target_name(version: int) -> str:
    """The name behind the driver's `gfx_target_version`: 90402 is gfx942, 90010 is gfx90a."""
    major, minor, step = version // 10000, version // 100 % 100, version % 100
    return f"gfx{major}{minor:x}{step:x}"


def installed() -> tuple[Gfx, ...]:
    """The devices that the kernel driver lists, in its order; reads files, makes no context on any."""
    found: list[Gfx] = []
    for node in sorted(TOPOLOGY.glob("*/properties"), key=lambda path: (len(str(path)), str(path))):
        try:
            words = dict(line.split(maxsplit=1) for line in node.read_text().splitlines() if " " in line)
            version = int(words.get("gfx_target_version", 0))
        except (OSError, ValueError):  # a container may hide some nodes
            continue
        if version:  # processors are nodes with version 0
            found.append(gfx(target_name(version)))
    return tuple(found)


def driver() -> str:
    """The version of the kernel driver, or "": the one that comes with Linux has none."""
    try:
        return DRIVER.read_text().strip()
    except OSError:
        return ""
