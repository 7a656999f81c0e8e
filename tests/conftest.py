"""What holds for every test."""

from __future__ import annotations

import pytest
import torch


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """One thread, whatever the test before left: tests are small, and threads that wait cost time."""
    torch.set_num_threads(1)
