"""Fixtures of the op tests."""

from __future__ import annotations

import numpy as np
import pytest

from dsv4core.ops import OPS, OpImpl, OpTable


@pytest.fixture(scope="session")
def ops() -> OpTable:
    """The portable bodies behind the checked façade."""
    return OpTable("portable_under_test", {n: OpImpl(o.body, "torch") for n, o in OPS.items()}, "error")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that depend on the test's name only."""
    return np.random.default_rng(list(request.node.name.encode()))
