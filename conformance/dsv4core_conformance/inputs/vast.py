"""Memory that reaches past 2^31, 2^32 and 2^34 bytes although only a few pages of it are touched.

On a device one process has such memory at a time: side by side, under pytest-xdist, it would not fit.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsv4core_conformance.case import NotRun

GIB = 1 << 30
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
_held: list[tuple[Any, torch.device]] = []


def vast(size: int, device: torch.device) -> Tensor:
    """`size` zero bytes; a CPU takes memory where it is touched. Raises NotRun where there is not so much.

    Shapes: -> u8 [size]
    """
    if device.type == "cpu":
        try:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
            return torch.frombuffer(mmap.mmap(-1, size, flags=flags), dtype=torch.uint8)
        except (AttributeError, OSError, ValueError) as error:
            raise NotRun(f"needs {size / GIB:.0f} GiB of address space: {error}") from None
    _take(device)
    try:
        return torch.zeros(size, dtype=torch.uint8, device=device)
    except RuntimeError as error:
        raise NotRun(f"needs {size / GIB:.0f} GiB on {device}: {str(error).splitlines()[0]}") from None


def vast_rows(tensor: Tensor, step: int, device: torch.device) -> Tensor:
    """The same numbers with `step` elements from row to row. Shapes: [T, ...] -> the same"""
    size = (max(len(tensor) - 1, 0) * step + max(tensor[0].numel(), 1)) * tensor.element_size()
    memory = vast(-(-size // 4096) * 4096, device).view(tensor.dtype)
    inner = torch.empty(tensor.shape[1:], device="meta").stride()
    view = memory.as_strided(tensor.shape, (step, *inner))
    view.copy_(tensor)
    return view


def release() -> None:
    """Behind a case: hand its memory back to the device, and the turn to the next process."""
    while _held:
        lock, device = _held.pop()
        torch.get_device_module(device).empty_cache()
        lock.close()


def _take(device: torch.device) -> None:
    """Wait for the turn of this process, if it does not have it already."""
    if _held:
        return
    user = getattr(os, "getuid", int)()
    lock = (Path(tempfile.gettempdir()) / f"dsv4core-conformance-{user}.lock").open("w")
    try:
        flock: Any = import_module("fcntl")
        flock.flock(lock, flock.LOCK_EX)
    except ImportError:  # Windows: processes have to do without turns
        pass
    _held.append((lock, device))
