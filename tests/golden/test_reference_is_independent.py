"""The reference judges the library, so it may share nothing with it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dsv4core_conformance.reference
from dsv4core_conformance.reference import quant
from dsv4core_conformance.reference.options import Yarn
from dsv4core_conformance.reference.rope import cos_sin, inverse_frequencies

FOLDER = Path(dsv4core_conformance.reference.__file__).parent
PACKAGE = dsv4core_conformance.reference.__name__


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: str(path.relative_to(FOLDER)))
def test_imports_are_numpy_and_the_standard_library(path: Path) -> None:
    allowed = sys.stdlib_module_names | {"numpy"}
    depth = len(path.relative_to(FOLDER).parts)  # so many dots still lead into the reference
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= allowed, ast.unparse(node)
        elif isinstance(node, ast.ImportFrom):
            inside = 1 <= node.level <= depth or str(node.module).startswith(f"{PACKAGE}.")
            inside |= node.level == 0 and node.module == PACKAGE
            outside = node.level == 0 and str(node.module).split(".")[0] in allowed
            assert inside or outside, ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {
            "__import__",
            "importlib.import_module",
        }:
            pytest.fail(f"{path.name} imports by name: {ast.unparse(node)}")


def test_importing_it_loads_neither_torch_nor_the_library() -> None:
    code = (
        "import sys, dsv4core_conformance.reference.ops, dsv4core_conformance.reference.byte_map\n"
        "found = {'torch', 'dsv4core', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'loaded {found}' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("theta", "yarn", "words"),
    [
        (
            1e4,
            None,
            {0: 0x3F800000, 1: 0x3F3FF911, 2: 0x3F0FF59A, 15: 0x3C5A7BF2, 16: 0x3C23D70A, 31: 0x390BD472},
        ),
        (
            1.6e5,
            Yarn(),
            {
                0: 0x3F800000,
                1: 0x3F300A3A,
                15: 0x3B6E4237,
                16: 0x3B147AE1,
                20: 0x399BB3AF,
                25: 0x36B443D0,
                31: 0x35187C4D,
            },
        ),
    ],
)
def test_frequencies_have_the_specified_bits(theta: float, yarn: Yarn | None, words: dict[int, int]) -> None:
    bits = inverse_frequencies(theta, yarn).view(np.uint32)
    assert {i: int(bits[i]) for i in words} == words


def test_the_angle_is_a_float32_product() -> None:
    frequencies = inverse_frequencies(1.6e5, Yarn())
    position = 2**20 - 1
    cos, _ = cos_sin([position], frequencies)
    exact = np.cos(position * frequencies.astype(np.float64))
    assert 1e-3 < np.abs(cos[0] - exact).max() < 5e-2


@pytest.mark.parametrize(
    ("amax", "byte"),
    [
        (0.0, 105),
        (1e-4, 105),
        (0.02734375, 113),
        (1.0, 119),
        (7.0, 121),
        (7.03125, 122),
        (448.0, 127),
        (450.0, 128),
        (3.3895313892515355e38, 247),
    ],
)
def test_e4m3_scale_bytes(amax: float, byte: int) -> None:
    assert int(quant.exponent_e4m3(np.array(amax))) + 127 == byte


@pytest.mark.parametrize(("amax", "byte"), [(0.0, 1), (1.0, 125), (6.0, 127), (6.03125, 128)])
def test_e2m1_scale_bytes(amax: float, byte: int) -> None:
    assert int(quant.exponent_e2m1(np.array(amax))) + 127 == byte


def test_every_e4m3_code_is_its_own_nearest() -> None:
    codes = np.array([c for c in range(256) if c & 0x7F != 0x7F], dtype=np.uint8)
    field, fraction = (codes >> 3 & 15).astype(int), (codes & 7).astype(float)
    magnitude = np.where(field == 0, fraction * 2.0**-9, np.ldexp(1 + fraction / 8, field - 7))
    values = np.where(codes & 0x80, -magnitude, magnitude)
    assert (quant.e4m3_codes(values) == codes).all()
    # Halfway to the next magnitude the even code wins, just beyond it the next one.
    upper = np.sort(magnitude[codes < 0x7F])
    middle = (upper[:-1] + upper[1:]) / 2
    lower = np.arange(len(middle))
    assert (quant.e4m3_codes(middle) == lower + lower % 2).all()
    assert (quant.e4m3_codes(np.nextafter(middle, np.inf)) == lower + 1).all()
    assert (quant.e4m3_codes(np.nextafter(middle, 0)) == lower).all()


def test_e2m1_thresholds() -> None:
    values = np.array(
        [
            0.25,
            0.2501,
            0.75,
            0.7499,
            1.25,
            1.2501,
            1.75,
            1.7499,
            2.5,
            2.5001,
            3.5,
            3.4999,
            5,
            5.001,
            9,
            -0.0,
            -0.2,
            -6,
        ]
    )
    assert quant.e2m1_codes(values).tolist() == [0, 1, 2, 1, 2, 3, 4, 3, 4, 5, 6, 5, 6, 7, 7, 8, 8, 15]


def test_bf16_rounding_is_nearest_even_including_subnormals() -> None:
    words = np.arange(0, 0x7F80, dtype=np.uint32)
    values = (words << 16).view(np.float32).astype(np.float64)
    assert (quant.to_bf16(values) == values).all()
    middle = (values[:-1] + values[1:]) / 2
    assert (quant.to_bf16(middle) == values[(words + words % 2)[:-1]]).all()


def test_hadamard_is_orthonormal_and_symmetric() -> None:
    matrix = quant.hadamard(np.eye(128))
    assert np.array_equal(matrix, matrix.T)
    assert np.allclose(matrix @ matrix, np.eye(128), atol=1e-12)
    assert (matrix[0] > 0).all()
    assert (np.sign(matrix[1]) == np.resize([1, -1], 128)).all()
