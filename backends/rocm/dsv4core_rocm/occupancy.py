"""What a compiled kernel leaves room for on an AMD device: wavefronts, and what they could move.

Arithmetic over the compiler's output and the table of devices; nothing here was measured.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from math import prod

from dsv4core_rocm.gfx import Gfx

GRANULE = 8  # registers are given out in eights, on CDNA 2 and later out of one file for both kinds
LATENCY_NS = 800.0
"""Assumed time of a load from HBM under load; published micro-benchmarks lie between 600 and 900."""
PENDING = 63  # loads that a wavefront can count
SIZES = {"byte": 1, "ubyte": 1, "sbyte": 1, "short": 2, "ushort": 2, "sshort": 2, "dword": 4}


LOADS = re.compile(rf"^\s*(?:global|buffer|flat)_load_({'|'.join(SIZES)})(?:x(\d))?", re.MULTILINE)


@dataclass(frozen=True)
class Resources:
    """From a kernel's amdgcn text. `vgprs` counts both kinds; spills are registers; `mfma` by instruction.

    `loads` has the bytes that a lane loads from memory with each instruction, in the order of the code.
    """

    vgprs: int
    agprs: int
    sgprs: int
    vgpr_spills: int
    sgpr_spills: int
    scratch: int
    lds: int
    mfma: dict[str, int]
    loads: tuple[int, ...] = ()

    @property
    def flops(self) -> int:
        """Operations of all matrix instructions, once through the code, of one wavefront."""
        shapes = {name: re.findall(r"\d+x\d+x\d+", name) for name in self.mfma}
        sizes = {name: prod(map(int, found[0].split("x"))) for name, found in shapes.items() if found}
        return sum(2 * size * self.mfma[name] for name, size in sizes.items())

    @classmethod
    def parse(cls, text: str, lds: int = 0) -> Resources:
        """Read the metadata behind the code; `lds` is what the launch adds to what the code asks for."""

        def number(word: str) -> int:
            found = re.search(rf"^\s*\.{word}:\s+(\d+)", text, re.MULTILINE)
            return int(found[1]) if found else 0

        return cls(
            number("vgpr_count"), number("agpr_count"), number("sgpr_count"), number("vgpr_spill_count"),
            number("sgpr_spill_count"), number("private_segment_fixed_size"),
            max(number("group_segment_fixed_size"), lds),
            dict(Counter(re.findall(r"\bv_s?mfmac?_\w+", text))),
            tuple(SIZES[word] * int(times or 1) for word, times in LOADS.findall(text)),
        )  # fmt: skip


@dataclass(frozen=True)
class Occupancy:
    """Wavefronts of one kernel on a compute unit, and what keeps it from more."""

    workgroups: int
    wavefronts: int
    limit: str


def occupancy(resources: Resources, gfx: Gfx, warps: int) -> Occupancy:
    """How many workgroups of `warps` wavefronts a compute unit holds.

    Every SIMD gives a wavefront its registers out of `gfx.vgprs`; a workgroup is spread over the SIMDs.
    """
    taken = -(-max(resources.vgprs, 1) // GRANULE) * GRANULE
    by_registers = min(gfx.vgprs // taken, gfx.waves) * gfx.simds // warps
    by_slots = gfx.waves * gfx.simds // warps
    by_lds = gfx.lds // resources.lds if resources.lds else by_slots
    groups = min(by_registers, by_slots, by_lds)
    limit = "registers" if by_registers == groups else "LDS" if by_lds == groups else "slots"
    return Occupancy(groups, groups * warps, "nothing" if groups == by_slots else limit)


@dataclass(frozen=True)
class Roofline:
    """Of one kernel: operations a byte, TFLOP/s that the device allows at that, and what its loads could
    stream if memory were as fast as they are many (at least the device's bandwidth is wanted).
    """

    intensity: float
    tflops: float
    gb_s: float


def roofline(resources: Resources, seat: Occupancy, gfx: Gfx) -> Roofline:
    """Once through the code on a device full of such wavefronts, each with all its loads on their way.

    What the caches answer is not known here: the intensity of a kernel that reads rows again is higher.
    """
    wave = gfx.wavefront * sum(resources.loads)
    pending = wave * min(1.0, PENDING / max(len(resources.loads), 1))
    intensity = resources.flops / max(wave, 1)
    reach = seat.wavefronts * gfx.cus * pending / LATENCY_NS
    return Roofline(intensity, min(gfx.bf16_tflops, intensity * gfx.gb_s * 1e-3), reach)


@dataclass(frozen=True)
class Work:
    """What a launch has to do: bytes of HBM, operations, programs, bytes that a program has on its way."""

    bytes: float
    flops: float
    programs: int
    in_flight: float


@dataclass(frozen=True)
class Estimate:
    """Microseconds: the device's floor, what these wavefronts could stream, and the larger of both bounds."""

    floor: float
    stream: float
    compute: float

    @property
    def expected(self) -> float:
        """No faster than this, if the assumed latency holds."""
        return max(self.stream, self.compute)


def estimate(work: Work, seat: Occupancy, gfx: Gfx, mfma_share: float = 1.0) -> Estimate:
    """Little's law for the bytes, the peak for the operations.

    Bytes on their way at once are those of all programs that run at once; over the latency they give a rate.
    `mfma_share` is the part of a matrix instruction's rows that hold something.
    """
    peak = gfx.bf16_tflops * 1e6  # per microsecond
    rate = gfx.gb_s * 1e3
    at_once = min(work.programs, max(seat.workgroups, 1) * gfx.cus)
    reachable = min(rate, at_once * work.in_flight / LATENCY_NS * 1e3)
    floor = max(work.bytes / rate, work.flops / peak)
    busy = min(1.0, at_once / gfx.cus)
    return Estimate(floor, work.bytes / reachable, work.flops / (peak * busy * mfma_share))
