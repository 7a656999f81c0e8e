"""Memory that reaches past 2^31, 2^32 and 2^34 bytes although only a few pages of it are touched.

Processes that share a device, under pytest-xdist, wait for each other's memory.
"""

from __future__ import annotations

import mmap
import os
import time

import torch
from torch import Tensor

from dsv4core_conformance.case import NotRun

GIB = 1 << 30
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
WAIT, SPARE = 60.0, 6 * GIB  # seconds for other processes to give memory back; what they need meanwhile
_filled: set[torch.device] = set()


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
    _wait(size, device)
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
    """Behind a case: hand its memory back to the device, for other processes."""
    while _filled:
        torch.get_device_module(_filled.pop()).empty_cache()


def _wait(size: int, device: torch.device) -> None:
    """Until other processes leave that much, where there are any; at most `WAIT` seconds."""
    _filled.add(device)
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    module = torch.get_device_module(device)
    module.empty_cache()
    give_up = time.monotonic() + WAIT
    while module.mem_get_info(device)[0] < size + SPARE and time.monotonic() < give_up:
        time.sleep(0.1)
