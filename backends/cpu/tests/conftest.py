"""The native kernels as a table of ops, for the tests of the contract."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from dsv4core import env
from dsv4core.ops import OPS, OpImpl, OpTable
from dsv4core_cpu.native import Native, choose
from dsv4core_cpu.ops import native_ops

# The contract's own tests and their references are reused as they are.
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tests" / "ops"))


@pytest.fixture(scope="session")
def native() -> Native:
    """The library that the DSV4CORE_CPU_* variables ask for; skipped where it cannot be built."""
    found = choose(env.settings("cpu"))
    if found is None:
        pytest.skip("the kernels cannot be built here, or are switched off")
    return found


@pytest.fixture(scope="session")
def ops(native: Native) -> OpTable:
    """Native where there is a kernel, the torch body for the rest, behind the checked façade."""
    table = {n: OpImpl(o.body, "torch") for n, o in OPS.items()}
    table.update({n: OpImpl(f, "native") for n, f in native_ops(native).items()})
    return OpTable("native_under_test", table, "error")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that depend on the test's name only."""
    return np.random.default_rng(list(request.node.name.encode()))
