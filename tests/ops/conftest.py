"""Fixtures of the op tests."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from dsv4core.ops import OPS, OpImpl, OpTable


@pytest.fixture(scope="session")
def ops() -> OpTable:
    """The portable bodies behind the checked façade."""
    return OpTable("portable_under_test", {n: OpImpl(o.body, "torch") for n, o in OPS.items()}, "error")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that depend on the test's name only."""
    return np.random.default_rng(list(request.node.name.encode()))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tests are small: threads that wait for each other cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
