"""Neutral code asks for no vendor, addresses are 64 bits wide, a compiler's figures are read right."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import dsv4core
import dsv4core_conformance
from dsv4core_rocm.gfx import DEVICES
from dsv4core_rocm.occupancy import Occupancy, Resources, Work, estimate, occupancy, roofline
from dsv4core_rocm.offsets import narrow_products

NEUTRAL = [Path(package.__file__).parent for package in (dsv4core, dsv4core_conformance) if package.__file__]
NVIDIA = {  # attributes that mean something on NVIDIA's devices alone, or true for AMD's too
    "get_device_capability", "get_arch_list", "get_gencode_flags", "is_bf16_supported", "is_cuda", "cudart",
    "device_capability", "is_tf32_supported",
}  # fmt: skip
REPORTS = {"conformance/dsv4core_conformance/report/build.py"}  # writes both versions down, decides nothing


def attributes(file: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted tail of every attribute in a file."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute):
            inner = node.value
            owner = inner.attr if isinstance(inner, ast.Attribute) else getattr(inner, "id", "")
            yield node.lineno, f"{owner}.{node.attr}"


def questions(file: Path) -> list[str]:
    """Where a file asks what only one vendor's devices can answer."""
    return [
        f"{file.name}:{line}: {name}"
        for line, name in attributes(file)
        if name.rpartition(".")[2] in NVIDIA or name == "version.cuda"
    ]


@pytest.mark.parametrize("package", NEUTRAL, ids=lambda path: path.name)
def test_neutral_code_asks_for_no_vendor(package: Path) -> None:
    files = [f for f in sorted(package.rglob("*.py")) if not any(f.as_posix().endswith(r) for r in REPORTS)]
    assert [found for file in files for found in questions(file)] == []


def test_the_check_finds_what_it_looks_for(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("ok = torch.cuda.get_device_capability() >= (9, 0) or x.is_cuda or torch.version.cuda\n")
    assert len(questions(file)) == 3


HEAD = '  tt.func public @k(%x: !tt.ptr<f32> loc("x"(#loc)), %stride: i32 loc("stride"(#loc))) {{\n'
WRAPPED = HEAD + (
    "    %c = arith.constant dense<64> : tensor<64xi32> loc(#loc1)\n"
    "    %p = tt.get_program_id x : i32 loc(#loc2)\n"
    "    %i = tt.splat %p : i32 -> tensor<64x{kind}> loc(#loc3)\n"
    "    %s = {widen} loc(#loc4)\n"
    "    %t = tt.splat %s : {kind} -> tensor<64x{kind}> loc(#loc5)\n"
    "    %o = arith.muli %i, %t : tensor<64x{kind}> loc(#loc6)\n"
    "    %a = arith.addi %o, %c : tensor<64x{kind}> loc(#loc7)\n"
    "    %r = tt.addptr %b, %a : tensor<64x!tt.ptr<f32>>, tensor<64x{kind}> loc(#loc8)\n"
)
LOOP = HEAD + (
    "    %p = tt.get_program_id x : i32 loc(#loc1)\n"
    "    %base = arith.muli %p, %stride : i32 loc(#loc2)\n"
    "    %z:2 = scf.for %k = %c0 to %n step %c1 iter_args(%u = %c0, %acc = %c) -> (i32, f32)  : i32 {{\n"
    "      %q = tt.addptr %x, %u : !tt.ptr<f32>, i32 loc(#loc3)\n"
    "      %l = tt.load %q : !tt.ptr<f32> loc(#loc4)\n"
    "      scf.yield %base, %acc : i32, f32 loc(#loc5)\n"
    "    }} loc(#loc6)\n"
)


def test_a_product_of_32_bits_in_an_address_is_found() -> None:
    (found,) = narrow_products(WRAPPED.format(kind="i32", widen="arith.trunci %stride : i32 to i32"))
    assert "%o = arith.muli %i, %t" in found and "#loc6" in found
    assert not narrow_products(WRAPPED.format(kind="i64", widen="arith.extsi %stride : i32 to i64"))


def test_a_remainder_is_no_product() -> None:
    text = WRAPPED.format(kind="i32", widen="arith.trunci %stride : i32 to i32")
    quotient = "    %i = arith.divsi %w, %t : tensor<64xi32> loc(#loc3)"
    assert not narrow_products(
        text.replace("    %i = tt.splat %p : i32 -> tensor<64xi32> loc(#loc3)", quotient)
    )


def test_a_product_is_followed_around_a_loop() -> None:
    (found,) = narrow_products(LOOP.format())
    assert "%base = arith.muli %p, %stride" in found


def test_a_product_that_is_no_address_is_left_alone() -> None:
    text = LOOP.format().replace("scf.yield %base", "scf.yield %c0")
    assert not narrow_products(text)


AMDGCN = """
\tglobal_load_dwordx4 v[0:3], v[4:5], off
\tbuffer_load_ubyte v8, v9, s[0:3], 0 offen
\tv_mfma_f32_16x16x16_bf16 v[0:3], v[4:5], v[6:7], 0
\tv_mfma_f32_16x16x16_bf16 v[0:3], v[4:5], v[6:7], v[0:3]
\tv_smfmac_f32_16x16x32_bf16 v[0:3], v[4:5], v[6:9], v1
    .agpr_count:     32
    .group_segment_fixed_size: 0
    .private_segment_fixed_size: 132
    .sgpr_count:     40
    .sgpr_spill_count: 0
    .vgpr_count:     164
    .vgpr_spill_count: 33
"""


def test_resources_are_read() -> None:
    found = Resources.parse(AMDGCN, lds=8192)
    mfma = {"v_mfma_f32_16x16x16_bf16": 2, "v_smfmac_f32_16x16x32_bf16": 1}
    assert found == Resources(164, 32, 40, 33, 0, 132, 8192, mfma, (16, 1))
    assert found.flops == 2 * 2 * 16 * 16 * 16 + 2 * 16 * 16 * 32


def seat(vgprs: int, lds: int, warps: int, name: str = "gfx942") -> Occupancy:
    return occupancy(Resources(vgprs, 0, 0, 0, 0, 0, lds, {}), DEVICES[name], warps)


@pytest.mark.parametrize(
    ("vgprs", "lds", "warps", "name", "expected"),
    [
        (400, 8192, 4, "gfx942", Occupancy(1, 4, "registers")),
        (240, 8192, 4, "gfx942", Occupancy(2, 8, "registers")),
        (257, 0, 8, "gfx942", Occupancy(0, 0, "registers")),
        (64, 40000, 4, "gfx942", Occupancy(1, 4, "LDS")),
        (64, 40000, 4, "gfx950", Occupancy(4, 16, "LDS")),
        (32, 0, 4, "gfx942", Occupancy(8, 32, "nothing")),
    ],
)
def test_occupancy(vgprs: int, lds: int, warps: int, name: str, expected: Occupancy) -> None:
    assert seat(vgprs, lds, warps, name) == expected


def test_a_kernel_under_its_roofline() -> None:
    gfx = DEVICES["gfx942"]
    mfma = {"v_mfma_f32_32x32x8_bf16": 4}
    two = roofline(Resources(0, 0, 0, 0, 0, 0, 0, mfma, (16,) * 2), Occupancy(1, 4, "LDS"), gfx)
    assert two.intensity == 4 * 2 * 32 * 32 * 8 / (2 * 16 * 64)
    assert two.tflops == pytest.approx(32 * 5.3) and two.gb_s == pytest.approx(4 * 304 * 2048 / 800)
    many = roofline(Resources(0, 0, 0, 0, 0, 0, 0, {}, (16,) * 630), Occupancy(1, 4, "LDS"), gfx)
    assert (many.intensity, many.tflops) == (0, 0)
    assert many.gb_s == pytest.approx(4 * 304 * 63 * 1024 / 800), "no more than a wavefront can count"


def test_estimates() -> None:
    gfx = DEVICES["gfx942"]
    work = Work(bytes=53e6, flops=1.307e9, programs=10**6, in_flight=1e6)
    full = estimate(work, Occupancy(8, 32, "nothing"), gfx)
    assert full.floor == pytest.approx(10.0) and full.expected == pytest.approx(10.0)
    starved = estimate(Work(53e6, 0.0, 304, 8192), Occupancy(1, 4, "registers"), gfx)
    assert starved.expected == pytest.approx(53e6 / (304 * 8192 / 0.8e3 * 1e3))  # 304 tiles every 800 ns
