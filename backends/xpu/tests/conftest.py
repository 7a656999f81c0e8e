"""Tests of the Triton kernels under the interpreter; one file an op, references are the torch bodies."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton: it decides once

torch = pytest.importorskip("torch")
pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Blocks are small: threads that wait for each other cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
