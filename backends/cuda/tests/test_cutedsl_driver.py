"""Loading and launching through a stand-in of CUDA's driver: contexts belong to threads."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from contextlib import nullcontext
from threading import Thread, local
from typing import Any

import pytest
import torch

from dsv4core.errors import BackendUnavailableError
from dsv4core_cuda.cutedsl import _driver

CONTEXT, KERNEL, NO_CONTEXT, NO_KERNEL = 0x1000, 0x2000, 201, 400


class FakeDriver:
    """The calls that `_driver` makes; a thread has no context before one is set in it."""

    def __init__(self) -> None:
        self.thread, self.launched, self.retained, self.handle = local(), 0, 0, KERNEL
        self.images: list[bytes] = []
        self.damaged: tuple[bytes, ...] = ()

    def _need(self) -> int:
        return 0 if getattr(self.thread, "context", None) else NO_CONTEXT

    def cuCtxGetCurrent(self, to: Any) -> int:
        to._obj.value = getattr(self.thread, "context", None)
        return 0

    def cuCtxSetCurrent(self, context: ctypes.c_void_p) -> int:
        self.thread.context = context.value
        return 0

    def cuDeviceGet(self, to: Any, device: int) -> int:
        to._obj.value = device
        return 0

    def cuDevicePrimaryCtxRetain(self, to: Any, device: ctypes.c_int) -> int:
        assert device.value == 0
        self.retained += 1
        to._obj.value = CONTEXT
        return 0

    def cuLibraryLoadData(self, library: Any, image: bytes, *rest: Any) -> int:
        library._obj.value = 1
        self.images.append(image)
        return 200 * (image in self.damaged)

    def cuLibraryGetKernelCount(self, count: Any, library: Any) -> int:
        count._obj.value = 1
        return 0

    def cuLibraryEnumerateKernels(self, kernel: Any, count: int, library: Any) -> int:
        kernel._obj.value = self.handle
        return 0

    def cuKernelSetAttribute(self, *_: Any) -> int:
        return 0

    def cuKernelGetFunction(self, function: Any, kernel: Any) -> int:
        return self._need()

    def cuLaunchKernelEx(self, shape: Any, kernel: ctypes.c_void_p, pointers: Any, extra: None) -> int:
        failed = self._need() or (0 if kernel.value == KERNEL else NO_KERNEL)
        self.launched += not failed
        return failed

    def cuGetErrorString(self, code: int, text: Any) -> int:
        text._obj.value = b"some reason"
        return 0


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    found = FakeDriver()
    monkeypatch.setattr(_driver, "driver", lambda: found)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())  # as torch's on the same device
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 0, raising=False)
    _driver._primary.cache_clear()
    yield found
    _driver._primary.cache_clear()


def loaded() -> _driver.Loaded:
    return _driver.load(
        0, lambda arch, anew: b"new" if anew else b"kept", struct.Struct("@qi"), 32, 60 * 1024, 1, False
    )


def elsewhere(*calls: Any) -> list[str]:
    """Make calls in a thread of their own: what they raised."""
    raised: list[str] = []

    def run() -> None:
        try:
            for call in calls:
                call()
        except RuntimeError as error:
            raised.append(str(error))

    thread = Thread(target=run)
    thread.start()
    thread.join()
    return raised


def test_the_first_call_of_a_process_loads_and_launches(fake: FakeDriver) -> None:
    loaded()((1, 1, 1), 7, 7)
    assert fake.launched == 1 and fake.retained == 1


def test_code_that_the_driver_refuses_is_compiled_anew(fake: FakeDriver) -> None:
    fake.damaged = (b"kept",)
    loaded()((1, 1, 1), 7, 7)
    assert fake.images == [b"kept", b"new"] and fake.launched == 1
    fake.damaged = (b"kept", b"new")
    with pytest.raises(RuntimeError, match="load: CUDA error 200"):
        loaded()


def test_a_device_without_kernels_is_named(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(BackendUnavailableError, match=r"SM90, .* device 0 is SM80: .*CUDA_VISIBLE_DEVICES"):
        loaded()


def test_a_thread_that_did_nothing_on_the_device_launches_and_loads(fake: FakeDriver) -> None:
    kernel = loaded()
    assert not elsewhere(lambda: kernel((1, 1, 1), 7, 7), lambda: kernel((1, 1, 1), 7, 7))
    assert not elsewhere(loaded, lambda: kernel((1, 1, 1), 7, 7))
    assert fake.launched == 3 and fake.retained == 1


def test_a_context_that_is_there_stays(fake: FakeDriver) -> None:
    fake.thread.context = 5  # of a library that has its own
    loaded()((1, 1, 1), 7, 7)
    assert fake.thread.context == 5 and not fake.retained


def test_another_failure_is_raised(fake: FakeDriver) -> None:
    fake.handle = KERNEL + 1
    kernel = loaded()
    assert elsewhere(lambda: kernel((1, 1, 1), 7, 7)) == [
        "dsv4core cuda kernels: cuLaunchKernelEx: CUDA error 400 (some reason)"
    ]
    assert not fake.launched
