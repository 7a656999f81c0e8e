"""Tests of the ROCm backend without a ROCm device.

Adapters of aiter meet a stand-in for it in `fake`, which is on the path for one test at a time. Tests of the
whole backend need Triton's interpreter: `TRITON_INTERPRET=1 python -m pytest backends/rocm/tests`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from dsv4core.layout import registry

FAKE = Path(__file__).parent / "fake"
collect_ignore = ["fake"]
if os.environ.get("TRITON_INTERPRET") != "1" or find_spec("triton") is None:
    collect_ignore += ["test_rocm_backend.py", "test_rocm_encodings.py"]


@pytest.fixture(autouse=True)
def layouts_of_the_core_afterwards() -> Iterator[None]:
    """What a test registers is gone for tests of others in the same process."""
    before = dict(registry._known)
    yield
    registry._known.clear()
    registry._known.update(before)


@pytest.fixture
def fake_aiter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The stand-in as module `aiter`."""
    monkeypatch.syspath_prepend(str(FAKE))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "aiter"]:
        del sys.modules[name]


@pytest.fixture(params=["gfx942", "gfx950"])
def arch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The architecture that the stand-in plays."""
    monkeypatch.setenv("DSV4CORE_ROCM_GFX", request.param)
    return request.param
