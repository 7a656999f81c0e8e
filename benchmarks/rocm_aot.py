"""Registers, LDS, matrix instructions and occupancy of the Triton kernels on AMD devices not here.

    python benchmarks/rocm_aot.py                        # gfx942 and gfx950 against benchmarks/rocm_aot.json
    python benchmarks/rocm_aot.py --target gfx950 --case "sparse*" --write
    python benchmarks/rocm_aot.py --sweep                # tiles of attention, with estimates beside the floor

Run it without TRITON_INTERPRET. It fails when a kernel takes more registers of either kind, spills more,
takes more LDS or leaves room for fewer wavefronts than its budget allows, lost an instruction of a matrix
shape, or multiplies a stride in 32 bits on the way to an address.
Beside each kernel stand the bandwidth that its loads could keep busy, in that of the device, and the
operations that the device's roofline allows at its ratio of operations to bytes. Estimates are arithmetic
over the compiler's output (`dsv4core_rocm.occupancy`): no AMD device was used.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "backends" / "rocm")]

from triton_aot import CASES  # noqa: E402

from dsv4core.kernels.triton import aot  # noqa: E402
from dsv4core.kernels.triton._tuning import Place, row_at, trial  # noqa: E402
from dsv4core_rocm.gfx import DEVICES, Gfx  # noqa: E402
from dsv4core_rocm.occupancy import (  # noqa: E402
    Occupancy,
    Resources,
    Work,
    estimate,
    occupancy,
    roofline,
)
from dsv4core_rocm.offsets import narrow_products  # noqa: E402

BASELINE = HERE / "rocm_aot.json"
TARGETS = ("gfx942", "gfx950")
SLACK = {"vgprs": 16, "agprs": 16, "spills": 16, "lds": 1024}
SWEPT = "sparse_attention"
Tile = dict[str, int]
TOKENS, HEADS, KEYS, ROW = 128, 64, 640, 584  # decode of 128 tokens of V4-Flash


def used(launch: aot.Launch, target: str) -> tuple[Resources, Occupancy, list[str]]:
    """Compile a launch: its resources, where it sits, and products of strides in 32 bits."""
    made = aot.compiled_for(launch, target)
    found = Resources.parse(made.asm["amdgcn"], int(made.metadata.shared))
    seat = occupancy(found, DEVICES[target], int(made.metadata.num_warps))
    return found, seat, narrow_products(made.asm["ttir"])


def of_case(case: str, target: str) -> Iterator[tuple[str, Resources, Occupancy, list[str]]]:
    """Every kernel of a case, once."""
    op, arguments = CASES[case]()
    function = getattr(import_module(f"dsv4core.kernels.triton.{op}"), op)
    seen: set[str] = set()
    for launch in aot.record(lambda: function(**arguments), target):
        if launch.name not in seen:
            seen.add(launch.name)
            yield launch.name, *used(launch, target)


def budget(found: Resources, seat: Occupancy) -> dict[str, Any]:
    """What goes into the baseline."""
    spills = found.vgpr_spills + found.sgpr_spills
    return {
        "vgprs": found.vgprs, "agprs": found.agprs, "spills": spills, "lds": found.lds,
        "wavefronts": seat.wavefronts, "mfma": found.mfma,
    }  # fmt: skip


def judge(now: dict[str, Any], before: dict[str, Any] | None) -> list[str]:
    """What is wrong with a kernel."""
    if before is None:
        return ["not in the baseline (--write)"]
    over = [k for k, slack in SLACK.items() if now[k] > before[k] + slack]
    wrong = [f"{now[k]} {k}, its budget is {before[k]}" for k in over]
    if now["wavefronts"] < before["wavefronts"]:
        wrong.append(f"room for {now['wavefronts']} wavefronts, the baseline has {before['wavefronts']}")
    gone = [name for name in before["mfma"] if name not in now["mfma"]]
    return wrong + ([f"no {', '.join(gone)}"] if gone else [])


def gate(targets: list[str], pattern: str, write: bool) -> int:
    """Compile, print and compare; the number of kernels in the wrong."""
    known = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    if write and pattern == "*":
        known |= {target: {} for target in targets}
    failures = 0
    for gfx in (DEVICES[target] for target in targets):
        print(f"{gfx.name} ({gfx.products}): {gfx.gb_s:.0f} GB/s, {gfx.bf16_tflops:.0f} TFLOP/s in bf16")
    words = "vgprs agprs spills   lds waves/CU limit     x HBM flop/B TFLOP/s  matrix units"
    print(f"{'target':7} {'case':42} {'kernel':34} {words}")
    for target, case in product(targets, CASES):
        if not fnmatchcase(case, pattern):
            continue
        for kernel, found, seat, narrow in of_case(case, target):
            now, key = budget(found, seat), f"{case} / {kernel}"
            if write:
                known.setdefault(target, {})[key] = now
            wrong = judge(now, known.get(target, {}).get(key))
            wrong += [f"a stride is multiplied in 32 bits: {said}" for said in narrow]
            failures += bool(wrong)
            numbers = f"{found.vgprs:5} {found.agprs:5} {now['spills']:6} {found.lds:5} {seat.wavefronts:8}"
            roof = roofline(found, seat, DEVICES[target])
            most = f"{roof.gb_s / DEVICES[target].gb_s:5.1f} {roof.intensity:6.1f} {roof.tflops:7.0f}"
            said = "".join(f"  WRONG: {w}" for w in wrong)
            print(
                f"{target:7} {case:42} {kernel:34} {numbers} {seat.limit:9} {most}  {shapes(found)}{said}",
                flush=True,
            )
    if write:
        BASELINE.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    return failures


def decode_work(tile: Tile, gfx: Gfx) -> Work:
    """Decode of 128 tokens over 128 + 512 keys: every row once from HBM, again for other heads from L2."""
    moved = TOKENS * (KEYS * ROW + 2 * HEADS * 512 * 2)
    flops = TOKENS * HEADS * KEYS * 2 * 1024
    programs = TOKENS * -(-HEADS // tile["HEADS"])
    return Work(
        moved, flops, programs, tile["KEYS"] * ROW * max(1, tile["num_stages"]) * tile["HEADS"] / HEADS
    )


def sweep(targets: list[str], tiles: list[Tile]) -> None:
    """Tiles of attention: what they take, and what that lets one expect. {}: the device's own."""
    op, arguments = CASES["sparse_decode 64 heads"]()
    function = getattr(import_module(f"dsv4core.kernels.triton.{op}"), op)
    words = "heads keys warps stages shape vgprs agprs spills   lds waves/CU floor expected us"
    print(f"{'target':7} {words}  mfma")
    for target, tile in product(targets, tiles):
        taken: Tile = {}

        def choose(place: Place, tile: Tile = tile, taken: Tile = taken) -> Tile:
            row = {k: v for k, v in row_at(place).items() if k != "least"}
            if place.kernel == SWEPT:
                row |= tile
                taken.update(row)
            return row

        try:
            with trial(choose):
                launches = aot.record(lambda: function(**arguments), target)
            found, seat, _ = used(launches[0], target)
        except Exception as error:  # a tile that does not fit is a finding
            print(f"{target:7} {tile} {type(error).__name__} {str(error)[-80:]}", flush=True)
            continue
        now = estimate(decode_work(taken, DEVICES[target]), seat, DEVICES[target])
        numbers = f"{found.vgprs:5} {found.agprs:5} {found.vgpr_spills + found.sgpr_spills:6} {found.lds:5}"
        times = f"{seat.wavefronts:8} {now.floor:5.1f} {now.expected:8.1f}"
        cut = f"{taken['HEADS']:5} {taken['KEYS']:4} {taken['num_warps']:5} {taken['num_stages']:6}"
        cut += f" {taken.get('matrix_instr_nonkdim', 0):5}"
        print(f"{target:7} {cut} {numbers} {times}     {shapes(found)}", flush=True)


def shapes(found: Resources) -> str:
    """Matrix instructions by shape."""
    return ", ".join(f"{n} {name.removeprefix('v_mfma_')}" for name, n in found.mfma.items())


def main() -> int:
    """Gate or sweep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", action="append", choices=TARGETS)
    parser.add_argument("--case", default="*")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument(
        "--estimate", action="store_true", help="the tuning table's own tiles, as a sweep of one"
    )
    chosen, began = parser.parse_args(), time.perf_counter()
    targets = chosen.target or list(TARGETS)
    if chosen.sweep or chosen.estimate:
        names = ("HEADS", "KEYS", "num_warps", "num_stages", "matrix_instr_nonkdim")
        sizes = product((16, 32, 64), (16, 32, 64), (4, 8), (1, 2), (16, 32))
        tiles = [dict(zip(names, tile, strict=True)) for tile in sizes]
        sweep(targets, [{}] if chosen.estimate else tiles)
        return 0
    failures = gate(targets, chosen.case, chosen.write)
    print(f"{failures} wrong, {time.perf_counter() - began:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
