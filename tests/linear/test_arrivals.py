"""Zeros that split sums count on: whose they are, and when they are made again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dsv4core.linear.triton_kernel import Arrivals

DEVICE = torch.device("meta")


def test_streams_and_captures_have_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    now: dict[str, Any] = {"stream": 1, "capture": 0}
    monkeypatch.setattr(
        torch.accelerator, "current_stream", lambda device: SimpleNamespace(stream_id=now["stream"])
    )
    arrivals = Arrivals(lambda device: now["capture"])
    first = arrivals.of(DEVICE)
    assert first is not None and arrivals.of(DEVICE) is first
    now["stream"] = 2
    assert arrivals.of(DEVICE) is not first
    now |= {"stream": 1, "capture": 7}
    captured = arrivals.of(DEVICE)
    assert captured is not first and arrivals.of(DEVICE) is captured
    now["capture"] = 8
    assert arrivals.of(DEVICE) is not captured
    now["capture"] = None
    assert arrivals.of(DEVICE) is None


def test_a_host_has_no_streams_to_keep_apart() -> None:
    assert Arrivals().of(torch.device("cpu")) is None
