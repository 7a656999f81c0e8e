"""How a kernel is started: no contraction, on its tensors' device, counted."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.kernels.triton._flags import INTERPRETED
from dsv4core.ops._contract import check_mode

LAUNCHES: Counter[str] = Counter()
"""Launches by kernel name since the process began; conformance reads it around a call."""

interpreted = bool(INTERPRETED.value)
if interpreted:
    from dsv4core.kernels.triton import _lockstep as lockstep

AMD_ONLY = ("waves_per_eu", "matrix_instr_nonkdim")
"""Launch arguments that no other compiler takes: wavefronts to leave room for, rows of a matrix product."""

Recorder = Callable[[Any, tuple[Any, ...], dict[str, Any]], None]
_recorder: Recorder | None = None
assumed: str | None = None
"""A family of `_devices` whose launch arguments are taken, whatever the device is."""


@contextmanager
def recorded(recorder: Recorder, device: str) -> Iterator[None]:
    """Hand launches to `recorder` instead of starting them, as on a device of that class (`_tuning`).

    Ahead-of-time compilation learns this way what would be launched, on a machine without the device.
    """
    global _recorder
    _recorder = recorder
    try:
        with launched_as(device):
            yield
    finally:
        _recorder = None


@contextmanager
def launched_as(device: str) -> Iterator[None]:
    """Cut kernels as for a device of that class, wherever they run."""
    global assumed
    before, assumed = assumed, device
    try:
        yield
    finally:
        assumed = before


def launch(
    kernel: Any, programs: int | tuple[int, ...], anchor: Tensor, *arguments: Any, **meta: Any
) -> None:
    """Start `kernel` over `programs` on the device of `anchor`; nothing to do starts nothing.

    `enable_fp_fusion=False` is CA1 rule 1: no multiply and add may become one rounding. A kernel with EARLY
    learns from it that it starts beside the one before (`_early`).
    """
    grid = (programs,) if isinstance(programs, int) else programs
    if 0 in grid:
        return None
    if "EARLY" in kernel.arg_names:
        meta.setdefault("EARLY", bool(meta.get("launch_pdl", 0)))
    if _recorder is not None:
        return _recorder(kernel, arguments, meta)
    LAUNCHES[kernel.__name__] += 1
    if assumed is not None:
        meta = {name: value for name, value in meta.items() if name not in AMD_ONLY}
    if interpreted and anchor.device.type == "cpu":
        return lockstep.run(kernel, grid, arguments, meta)
    with on(anchor.device):
        kernel[grid](*arguments, enable_fp_fusion=False, **meta)
    return None


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensors'."""
    if device.type == "cpu":
        return nullcontext()
    module = torch.get_device_module(device)
    return nullcontext() if module.current_device() == device.index else module.device(device)


def power(n: int, least: int = 1) -> int:
    """The next power of two that holds n."""
    return max(least, 1 << max(n - 1, 0).bit_length())


def pieces(n: int, size: int) -> int:
    """How many blocks of `size` cover n."""
    return -(-n // size)


def alignment(pages: Tensor) -> int:
    """The largest power of two up to 16 that divides every page's address: parents may start anywhere."""
    places = pages.data_ptr() | (pages.stride(0) * pages.element_size() if pages.shape[0] > 1 else 0) | 16
    return places & -places


def value_checks(tensor: Tensor) -> bool:
    """Whether numbers inside tensors are checked: reading them stops a device, so only where asked."""
    mode = check_mode()
    return mode == "1" or (mode != "0" and tensor.device.type == "cpu")


def supported(op: str, argument: str, layout: str, known: tuple[str, ...]) -> str:
    """The layout, if a kernel knows it; f32 rows are for comparisons on the CPU only."""
    if layout not in known:
        expected = f"one of {', '.join(known)}; the cpu backend has {layout}"
        raise OpArgumentError(op, argument, expected, repr(layout))
    return layout
