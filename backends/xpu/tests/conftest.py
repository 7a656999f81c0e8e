"""Tests of the Triton kernels under the interpreter; one file an op, references are the torch bodies.

Type `TRITON_INTERPRET=1 python -m pytest backends/xpu/tests` where triton is installed: triton reads the
variable once, when it is imported, so a process that runs other tests must not set it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1" or find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Blocks are small: threads that wait for each other cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
