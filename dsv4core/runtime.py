"""Streams, events, graphs and scratch memory on whatever device the tensors live on."""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from dsv4core.errors import BackendError
from dsv4core.probe import describe

Result = TypeVar("Result")


def usable(device: torch.device | str) -> torch.device:
    """The device, after torch has made an empty tensor there. Raises BackendError where it makes none."""
    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except Exception as error:  # AssertionError, RuntimeError or ImportError: by device and by build of torch
        here = ["cpu", *([str(accelerator())] if accelerator() is not None else [])]
        raise BackendError(
            f"device {str(device)!r}: torch {torch.__version__} makes no tensor there: {describe(error)}; "
            f"here it has {' and '.join(here)}; `dsv4core info` says what each backend needs"
        ) from None
    return where


def accelerator() -> torch.device | None:
    """The device beside the processor, where torch was built for one and it is there."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None


def autocasts(kind: str) -> bool:
    """Whether `torch.autocast` is on for a device type: it would round products that ops keep in f32."""
    return kind != "meta" and torch.is_autocast_enabled(kind)


def new_stream(device: torch.device | str) -> torch.Stream:
    """A side stream of the device. Raises BackendError where the device has none (a CPU)."""
    return _made(lambda: torch.Stream(device=torch.device(device)), "streams", device)


def new_event(device: torch.device | str) -> torch.Event:
    """An event of the device, without timing. Raises BackendError where the device has none."""
    return _made(lambda: torch.Event(device=torch.device(device)), "events", device)


def _made(make: Callable[[], Any], what: str, device: torch.device | str) -> Any:
    try:
        return make()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise BackendError(
            f"no {what} on device {str(device)!r}: {error}; run without side streams"
        ) from error


def graph_support(device: torch.device | str) -> tuple[Callable[[], Any] | None, str]:
    """What captures a graph on the device, and why nothing does if the first item is None.

    torch's neutral `torch.accelerator.Graph` where it exists, else the CUDA one; ROCm's torch answers to
    "cuda" too.
    """
    kind = torch.device(device).type
    if kind == "cpu":
        return None, "no graphs: a CPU launches nothing that could be captured"
    accelerator = getattr(torch, "accelerator", None)
    if accelerator is None or not accelerator.is_available():
        return None, f"no graphs: torch {torch.__version__} sees no accelerator"
    graph = getattr(accelerator, "Graph", None)
    if graph is not None:
        return graph, "torch.accelerator.Graph"
    if kind == "cuda":
        return torch.cuda.CUDAGraph, "torch.cuda.CUDAGraph"
    return None, f"no graphs: torch {torch.__version__} has no torch.accelerator.Graph for {kind!r}"


def captured(
    call: Callable[[], Result], device: torch.device | str, warm_ups: int = 2
) -> tuple[Callable[[], None], Result]:
    """Capture a call as a graph of the device: what replays it, and the result that a replay overwrites.

    The call runs `warm_ups` times before, on a side stream. Raises BackendError where nothing captures.
    """
    make, reason = graph_support(device)
    if make is None:
        raise BackendError(reason)
    side: Any = new_stream(device)
    side.wait_stream(torch.accelerator.current_stream(device))
    with side:
        for _ in range(warm_ups):
            call()
    torch.accelerator.synchronize(device)
    graph = make()
    if isinstance(graph, torch.cuda.CUDAGraph):
        with torch.cuda.graph(graph):
            result = call()
    else:
        with side, graph:
            result = call()
    return graph.replay, result


def device_name(device: torch.device | str) -> str:
    """The device's name as its maker prints it; the processor's model for a CPU."""
    where = torch.device(device)
    if where.type == "cpu":
        return _cpu_model()
    named = getattr(torch.get_device_module(where.type), "get_device_name", None)
    return str(where) if named is None else str(named(where))


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


class Workspace:
    """Scratch bytes shared by all layers of a backend on one device; grows, never shrinks.

    What `take` returns is overwritten by the next `take` of the same thread on the same stream: it lives for
    one call of one layer. Threads and streams have a buffer each: none overwrites what another still reads.
    """

    def __init__(self) -> None:
        self._own = threading.local()

    def reserve(self, size: int, device: torch.device) -> None:
        """Make sure that `size` bytes are there for this thread and the current stream."""
        if self.reserved(device) < size:
            self._buffers[_place(device)] = torch.empty(size, dtype=torch.uint8, device=device)

    def reserved(self, device: torch.device) -> int:
        """Bytes held on a device by this thread for the current stream."""
        have = self._buffers.get(_place(device))
        return 0 if have is None else have.numel()

    def take(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialised tensor at the start of the buffer. Shapes: -> `shape`."""
        if torch.compiler.is_compiling():  # a compiled graph plans its own memory, and knows no streams
            return torch.empty(shape, dtype=dtype, device=device)
        count = 1
        for size in shape:
            count *= size
        size = count * dtype.itemsize
        self.reserve(size, device)
        return self._buffers[_place(device)][:size].view(dtype).view(shape)

    @property
    def _buffers(self) -> dict[Place, Tensor]:
        held: dict[Place, Tensor] | None = getattr(self._own, "buffers", None)
        if held is None:
            held = self._own.buffers = {}
        return held


Place = tuple[torch.device, int]


def _place(device: torch.device) -> Place:
    """A device and its current stream; a CPU has none."""
    return device, 0 if device.type in ("cpu", "meta") else torch.accelerator.current_stream(device).stream_id
