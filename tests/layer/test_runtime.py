"""Streams, events, graphs, scratch memory: what a CPU answers, and which graph class is taken elsewhere."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch

from dsv4core import AttentionConfig, AttentionWeights, PagedCache, runtime
from dsv4core.errors import BackendError


def test_cpu_has_no_graphs_and_says_why() -> None:
    make, reason = runtime.graph_support("cpu")
    assert make is None and reason.startswith("no graphs")


@pytest.mark.parametrize(
    ("kind", "accelerator", "expected"),
    [
        ("cuda", SimpleNamespace(is_available=lambda: True, Graph=dict), "torch.accelerator.Graph"),
        ("xpu", SimpleNamespace(is_available=lambda: True, Graph=dict), "torch.accelerator.Graph"),
        ("cuda", SimpleNamespace(is_available=lambda: True), "torch.cuda.CUDAGraph"),
        ("xpu", SimpleNamespace(is_available=lambda: True), "no graphs"),
        ("cuda", SimpleNamespace(is_available=lambda: False, Graph=dict), "no graphs"),
    ],
)
def test_graph_class(monkeypatch: pytest.MonkeyPatch, kind: str, accelerator: object, expected: str) -> None:
    monkeypatch.setattr(torch, "accelerator", accelerator)
    make, reason = runtime.graph_support(kind)
    assert reason.startswith(expected)
    assert (make is None) == expected.startswith("no graphs")


def test_streams_and_events_of_a_missing_device_are_refused() -> None:
    for make in (runtime.new_stream, runtime.new_event):
        with pytest.raises(BackendError, match="run without side streams"):
            make("xpu" if not torch.xpu.is_available() else "mps")


@pytest.mark.parametrize("device", ["cudaa", "hpu", "xpu" if not torch.xpu.is_available() else "mps"])
def test_a_device_that_is_not_here_is_refused_by_name(device: str) -> None:
    config = AttentionConfig.preset("tiny")
    weights = AttentionWeights.random(config, 0, 1)
    for asks in (lambda: PagedCache.allocate(config, [0], 64, device), lambda: weights.to(device)):
        with pytest.raises(BackendError, match=rf"device '{device}': torch .*; here it has cpu.*core info"):
            asks()


def test_workspace_grows_and_is_shared() -> None:
    work, device = runtime.Workspace(), torch.device("cpu")
    assert work.reserved(device) == 0
    first = work.take((3, 5), torch.bfloat16, device)
    assert first.shape == (3, 5) and work.reserved(device) == 30
    work.reserve(1000, device)
    assert (
        work.take((4,), torch.float32, device).data_ptr()
        == work.take((9, 2), torch.bfloat16, device).data_ptr()
    )
    assert work.reserved(device) == 1000
    assert work.take((0, 7), torch.float32, device).shape == (0, 7)


def test_threads_have_scratch_of_their_own() -> None:
    work, device = runtime.Workspace(), torch.device("cpu")
    mine, theirs = work.take((8,), torch.float32, device), []
    thread = threading.Thread(target=lambda: theirs.append(work.take((8,), torch.float32, device)))
    thread.start()
    thread.join()
    assert mine.data_ptr() != theirs[0].data_ptr()
    assert mine.data_ptr() == work.take((8,), torch.float32, device).data_ptr()
