"""Zeroed memory: the same tensor whether the host has huge pages or not."""

from __future__ import annotations

import mmap

import pytest
import torch

from dsv4core.cache.zeroed import HUGE_PAGE, zeroed

SIZES = (0, 1, HUGE_PAGE - 1, HUGE_PAGE, 3 * HUGE_PAGE + 576)


@pytest.mark.parametrize("advice", ["there", "not there"])
@pytest.mark.parametrize("size", SIZES)
def test_zeros_that_can_be_written(size: int, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if advice == "not there":
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    found = zeroed(size, torch.device("cpu"))
    assert found.dtype == torch.uint8 and found.shape == (size,) and not found.any()
    assert found.data_ptr() % 16 == 0
    found.fill_(7)
    assert (found == 7).all()


def test_a_view_keeps_the_memory_alive() -> None:
    view = zeroed(2 * HUGE_PAGE, torch.device("cpu")).view(2, -1)[1].view(torch.float32)
    view.fill_(1.5)
    assert float(view.sum()) == 1.5 * HUGE_PAGE / 4


def test_other_devices_get_a_tensor_of_theirs() -> None:
    assert zeroed(4 * HUGE_PAGE, torch.device("meta")).is_meta
